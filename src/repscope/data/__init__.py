"""What a network is shown: entities with attributes, labelled text."""
