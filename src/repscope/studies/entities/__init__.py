"""The study `entities`."""
