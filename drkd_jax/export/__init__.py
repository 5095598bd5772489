"""Exports a trained detector as a program: StableHLO by jax.export, ONNX by jax2onnx."""
