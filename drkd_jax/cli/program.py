"""What the installed command ``drkd`` runs."""

from __future__ import annotations

from typing import NoReturn

from drkd_jax.training.interrupt import leave_quietly


def run() -> NoReturn:
    """Runs a command; its imports come after Ctrl-C is listened to, since they take seconds."""
    leave_quietly()
    from drkd_jax.__main__ import program

    program()
