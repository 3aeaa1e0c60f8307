"""The study `discover`."""
