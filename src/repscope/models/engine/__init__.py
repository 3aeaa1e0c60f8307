"""The engine, private to `models`: files in the order of the forward pass."""
