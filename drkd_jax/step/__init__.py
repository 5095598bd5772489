"""One training step: losses, gradient, optimiser, and what it changes."""
