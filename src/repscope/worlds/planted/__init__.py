"""Functions and networks with planted directions."""
