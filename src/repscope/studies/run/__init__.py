"""What all studies share: options, steps, the run folder, provenance."""
