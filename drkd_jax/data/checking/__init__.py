"""What is wrong with a set or odd in it, before and at the start of a run."""
