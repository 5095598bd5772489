"""The commands of ``drkd`` and ``python -m drkd_jax``, and the flags of ``train.py``."""

from __future__ import annotations

from typing import NoReturn

from drkd_jax.fault_tolerance.interrupt import leave_quietly


def run() -> NoReturn:
    """The entry point of ``drkd``: handles Ctrl-C before the command's imports, which are slow."""
    leave_quietly()
    from drkd_jax.__main__ import program

    program()
