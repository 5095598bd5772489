"""Files of other programs, read as data: arrays by their keys, and nothing is run."""
