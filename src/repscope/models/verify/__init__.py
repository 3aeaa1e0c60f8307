"""Checks of the engine on the user's own model."""
