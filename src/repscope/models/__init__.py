"""Networks under study: sites, prompts, capture, edits, gradients and Jacobians."""
