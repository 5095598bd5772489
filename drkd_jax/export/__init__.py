"""A trained detector as a program for others: StableHLO by jax.export, ONNX by jax2onnx."""
