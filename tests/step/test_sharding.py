import pytest

from drkd_jax.errors import UserError
from drkd_jax.step.sharding import check_batch_size


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_sizes():
    check_batch_size(8, 4)
    with pytest.raises(UserError, match=r"batch_size = 10 .* 4 devices; use 8 or 12"):
        check_batch_size(10, 4)
    with pytest.raises(UserError, match=r"use 4$"):
        check_batch_size(3, 4)
    with pytest.raises(UserError, match=r"20 .* 16 devices of 2 processes; use 16 or 32"):
        check_batch_size(20, 16, 2)
