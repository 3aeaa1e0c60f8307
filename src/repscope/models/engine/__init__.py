"""Private engine of `models`: planning and running forward passes, reading and editing sites."""
