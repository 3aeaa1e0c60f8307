"""The study `paths`."""
