"""Compiled programs kept from one start to the next."""

from __future__ import annotations

from pathlib import Path

import jax

from drkd_jax.fault_tolerance.writing import as_user_error


def keep_programs(folder: str | Path) -> None:
    """Has JAX keep what it compiles in a folder, and look there first.

    Raises:
        UserError: the folder cannot be made.
    """
    path = Path(folder)
    with as_user_error(path):
        path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path.absolute()))
    # Small programs too: a start runs hundreds of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
