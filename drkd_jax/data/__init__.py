"""Reads images and boxes: three kinds of sources, one record type, deterministic batches."""
