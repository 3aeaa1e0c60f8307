"""Data sets: entities with attributes, labelled texts, user tables, splits."""
