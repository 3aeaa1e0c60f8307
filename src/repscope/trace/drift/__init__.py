"""Drift between two checkpoints: weights, representations, next tokens and directions of a model before and after tuning."""
