"""Operations are compiled as users compile them: their numbers are the matter here."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _as_users_do(whole_compile):
    """For every file of this room."""
