"""Skills over checkpoints: curves of probes, and the steps at which they appear."""
