"""The config text that mmdetection stores in a checkpoint: used, or refused by name."""
