"""Many variants of one prompt in one forward pass."""
