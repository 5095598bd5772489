"""Reads the config text that mmdetection stores in a checkpoint; unsupported keys are errors."""
