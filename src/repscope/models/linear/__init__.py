"""Jacobians and what they give: products, singular vectors, path attribution."""
