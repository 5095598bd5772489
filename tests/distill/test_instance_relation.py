"""The filter works for any number of boxes in any order."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax.distill.config import InstanceRelationConfig
from drkd_jax.distill.instance_relation import (
    LearnedFilter,
    RandomFilter,
    RelationUnit,
    masked_softmax,
    row_entropy,
)
from drkd_jax.distill.layers import Linear
from drkd_jax.errors import UserError
from drkd_jax.frozen import Frozen

X = np.random.default_rng(0).standard_normal((1, 6, 12)).astype(np.float32)
ALL = np.ones((1, 6), bool)


def unit(kind: str) -> RelationUnit:
    config = InstanceRelationConfig(similarity="bilinear", filter=kind, filter_rank=4, embedding=5)
    return RelationUnit(12, config, rngs=nnx.Rngs(0))


def test_permuting_boxes_permutes_the_matrix_and_nothing_else():
    order = np.asarray([3, 0, 5, 1, 4, 2])
    module = unit("learned")
    psi = module.relation(X, ALL)[0]
    shuffled = module.relation(X[:, order], ALL)[0]
    np.testing.assert_allclose(shuffled, psi[order][:, order], rtol=1e-5, atol=1e-7)


def test_the_random_filter_depends_on_the_order():
    """It is the author's: output j belongs to position j."""
    order = np.asarray([3, 0, 5, 1, 4, 2])
    w = RandomFilter(12, 8, rngs=nnx.Rngs(0))
    found, shuffled = w(X, ALL)[0], w(X[:, order], ALL)[0]
    assert np.abs(np.asarray(shuffled - found[order][:, order])).max() > 1e-3


def test_more_boxes_than_the_random_filter_has_outputs_are_refused_by_name():
    with pytest.raises(UserError, match=r"serves 5 boxes .* rows for 6: set .*max_boxes = 5"):
        RandomFilter(12, 5, rngs=nnx.Rngs(0))(X, ALL)


@pytest.mark.parametrize("kind", ["learned", "random", "none"])
def test_rows_of_padding_change_nothing(kind):
    module = unit(kind)
    few = module.relation(X[:, :4], ALL[:, :4])[0]
    valid = ALL & (np.arange(6) < 4)
    padded = module.relation(X, valid)[0]
    np.testing.assert_allclose(padded[:4, :4], few, rtol=1e-5, atol=1e-7)
    assert float(jnp.abs(padded[4:]).sum() + jnp.abs(padded[:, 4:]).sum()) == 0
    np.testing.assert_allclose(padded.sum(1), [1] * 4 + [0] * 2, rtol=1e-5)


def test_the_learned_filter_gets_gradients_and_the_random_one_is_no_parameter():
    learned, drawn = (
        nnx.state(f, nnx.Param)
        for f in (LearnedFilter(12, 4, rngs=nnx.Rngs(0)), RandomFilter(12, 8, rngs=nnx.Rngs(0)))
    )
    assert jax.tree.leaves(learned)
    assert not jax.tree.leaves(drawn)
    assert jax.tree.leaves(nnx.state(RandomFilter(12, 8, rngs=nnx.Rngs(0)), Frozen))
    graph, params = nnx.split(LearnedFilter(12, 4, rngs=nnx.Rngs(0)))
    weights = np.arange(36, dtype=np.float32).reshape(1, 6, 6)
    gradient = jax.grad(lambda p: (nnx.merge(graph, p)(X, ALL) * weights).sum())(params)
    for path, slot in nnx.to_flat_state(gradient):
        if path != ("query", "bias") and path != ("key", "bias"):
            assert float(jnp.abs(slot[...]).max()) > 1e-3, path


def test_an_image_without_boxes_is_0_with_gradient_0():
    gradient = jax.grad(lambda x: (masked_softmax(x, ~ALL) * x).sum())(jnp.ones((1, 6, 6)))
    assert float(jnp.abs(gradient).max()) == 0


def test_one_box_looks_at_itself():
    assert float(unit("learned").relation(X[:, :1], ALL[:, :1])[0, 0, 0]) == 1


def test_entropy_of_uniform_rows_is_1_and_of_sure_rows_0():
    uniform = jnp.full((1, 6, 6), 1 / 6)
    assert float(row_entropy(uniform, ALL)) == pytest.approx(1, rel=1e-5)
    assert float(row_entropy(jnp.eye(6)[None], ALL)) == 0
    assert float(row_entropy(jnp.ones((1, 1, 1)), ALL[:, :1])) == 0
    others = (1 - jnp.eye(6))[None] / 5  # a row that leaves its own box out
    assert float(row_entropy(others, ALL, diagonal=False)) == pytest.approx(1, rel=4e-7)


def test_weights_start_within_1_over_the_root_of_the_inputs_as_pytorch_s_do():
    layer = Linear(16, 500, rngs=nnx.Rngs(0))
    for drawn in (layer.kernel[...], layer.bias[...]):
        assert 0.24 < float(drawn.max()) <= 0.25
        assert -0.25 <= float(drawn.min()) < -0.24
        assert abs(float(drawn.mean())) < 0.02
