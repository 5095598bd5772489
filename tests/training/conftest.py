"""Shared by the tests of a run."""

import jax
import pytest

FLAG = "jax_disable_most_optimizations"


@pytest.fixture(scope="module")
def quick_compile():
    """Compiles without XLA's costly optimisations: half the time, where speed is not the matter."""
    before = jax.config.values[FLAG]
    jax.config.update(FLAG, True)
    yield
    jax.config.update(FLAG, before)
