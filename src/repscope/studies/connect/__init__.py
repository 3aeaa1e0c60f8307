"""The study `connect`."""
