"""The commands of ``drkd`` and ``python -m drkd_jax``, and the flags of ``train.py``."""

from __future__ import annotations

from typing import NoReturn

from drkd_jax.fault_tolerance.interrupt import leave_quietly


def run() -> NoReturn:
    """What ``drkd`` runs: a command, whose imports come after Ctrl-C is listened to (seconds)."""
    leave_quietly()
    from drkd_jax.__main__ import program

    program()
