"""Training: builds a run from its config and executes it, with evaluations and checkpoints."""
