"""Counts of a training step as XLA compiles it for an H100 that is described, not there."""
