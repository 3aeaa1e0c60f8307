"""The study `lens`."""
