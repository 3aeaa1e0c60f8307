"""Benchmarks of methods on known ground truth."""
