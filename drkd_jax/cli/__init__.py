"""The commands of ``python -m drkd_jax`` and the flags of ``train.py``."""
