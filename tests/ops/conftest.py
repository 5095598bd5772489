"""Compiles operations as users do, since these tests are about their numbers."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _as_users_do(whole_compile):
    """Applies to all files in this folder."""
