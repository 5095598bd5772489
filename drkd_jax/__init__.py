"""Dual relation knowledge distillation (DRKD) for object detectors in JAX and Flax."""

__version__ = "0.1.0"
