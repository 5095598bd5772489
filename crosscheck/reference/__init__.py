"""The formulas in plain PyTorch, to hold the JAX ones against. Imports torch, never JAX.

Nothing of the product imports this package; `python -m drkd_jax crosscheck` runs it in an
interpreter that has torch.
"""
