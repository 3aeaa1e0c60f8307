"""Activation patching, its approximations, and ablation."""
