"""Linearisation of networks: Jacobian passes, products and singular vectors."""
