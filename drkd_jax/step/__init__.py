"""One training step: losses, gradient, optimiser, and the state that it updates."""
