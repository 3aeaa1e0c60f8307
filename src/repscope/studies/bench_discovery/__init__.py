"""The study `bench-discovery`."""
