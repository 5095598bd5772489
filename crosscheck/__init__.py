"""Compares all formulas with PyTorch: `python -m drkd_jax crosscheck`, in a checkout.

This file imports nothing, because `crosscheck.reference` runs in an interpreter without JAX.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    from crosscheck import command

    return command.main(argv)
