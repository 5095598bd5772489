"""The formulas in plain PyTorch, to compare the JAX ones with. Imports torch, never JAX.

The product never imports this package; `python -m drkd_jax crosscheck` runs it in an interpreter
with torch.
"""
