"""Reading representations: linear probes, the logit lens."""
