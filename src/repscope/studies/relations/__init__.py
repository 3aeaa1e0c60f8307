"""The study `relations`."""
