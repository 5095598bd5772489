"""Counts for a training step that XLA compiles for a described H100, without having one."""
