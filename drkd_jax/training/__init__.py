"""Training: state, step, schedule, checkpoints and the loop around them."""
