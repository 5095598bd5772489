"""The commands of ``drkd`` and ``python -m drkd_jax``, and the flags of ``train.py``."""
