"""The study `verify`."""
