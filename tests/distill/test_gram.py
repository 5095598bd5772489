"""The Gram form equals the plain form: losses, gradients, states, diagnostics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax.distill import gram as gram_file
from drkd_jax.distill.config import PixelRelationConfig
from drkd_jax.distill.pairing import LevelPair
from drkd_jax.distill.pixel_relation import PixelRelation
from drkd_jax.types import FeatureSpec
from tests.distill.common import relative

pytestmark = pytest.mark.usefixtures("whole_compile")

SHAPE = 2, 12, 20
MASK = np.ones(SHAPE, bool)
MASK[0, 9:] = MASK[1, :, 13:] = False


def build(arithmetic: str, form: str = "paper", channels: tuple[int, int] = (6, 8), **more):
    config = PixelRelationConfig(
        nodes=(4,), form=form, arithmetic=arithmetic, teacher_modules="trained", **more
    )
    specs = (FeatureSpec((n,), (8,), ("lateral",)) for n in channels)
    return PixelRelation(config, (LevelPair(0, 0, 8),), *specs, rngs=nnx.Rngs(0))


def evaluate(term: PixelRelation, s, t, *, train: bool = True, groups: int = 1):
    graph, params, rest = nnx.split(term, nnx.Param, ...)

    def loss(params, s, t):
        module = nnx.merge(graph, params, rest, copy=True)
        value, diagnostics = module((s,), (t,), (MASK,), groups=groups, train=train)
        return value, (diagnostics, nnx.state(module, nnx.BatchStat))

    function = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (value, aux), gradients = function(params, s, t)
    return value, gradients, aux


def maps(channels=(6, 8), dtype=np.float32):
    random = np.random.default_rng(0)
    return (random.standard_normal((*SHAPE, n)).astype(dtype) + dtype(0.5) for n in channels)


@pytest.mark.parametrize(
    ("form", "compare", "train", "groups"),
    [
        ("paper", "correlation", True, 1),
        ("paper", "correlation", False, 1),
        ("paper", "values", True, 1),
        ("official", "values", True, 2),
    ],
)
@pytest.mark.parametrize("chunk", [64, 8192])
def test_gram_equals_plain_in_float64(form, compare, train, groups, chunk, monkeypatch):
    """Also if the map is read in several chunks with a remainder (chunks of 1 and 12 rows)."""
    monkeypatch.setattr(gram_file, "CPU_CHUNK", chunk)
    with jax.enable_x64(True):
        s, t = maps(dtype=np.float64)
        plain, gram = (
            evaluate(build(how, form, compare=compare), s, t, train=train, groups=groups)
            for how in ("plain", "gram")
        )
    for found, wanted in zip(gram, plain, strict=True):
        assert relative(found, wanted) < 4e-15  # measured: 4e-16


@pytest.mark.parametrize("compare", ["correlation", "values"])
def test_gram_equals_plain_in_float32(compare):
    s, t = maps()
    plain, gram = (evaluate(build(how, compare=compare), s, t) for how in ("plain", "gram"))
    assert float(gram[0]) == pytest.approx(float(plain[0]), rel=1.5e-6)  # measured: 2e-7
    for found, wanted in zip(gram[1], plain[1], strict=True):
        assert relative(found, wanted) < 1e-5  # measured: 1.4e-6


@pytest.mark.parametrize("height", [3.3, 10.3])
def test_a_flat_channel_is_flat_in_the_gram_form_as_well(height):
    """With a large mean, the difference of large numbers is only rounding, of either sign."""
    s, t = (np.tile(x, (1, 4, 4, 1)) for x in maps())
    t[..., 0] = height  # of every image
    t[0] = -height  # an image that is flat altogether
    s[1, ..., 2] = height
    mask = np.tile(MASK, (1, 4, 4))
    values, pulls = [], []
    for how in ("plain", "gram"):
        term = build(how, student_scale=0.0, teacher_scale=0.0)

        def loss(s, t=t, term=term):
            return nnx.clone(term)((s,), (t,), (mask,))[0]

        value, pull = jax.jit(jax.value_and_grad(loss))(s)
        values.append(float(value))
        pulls.append(pull)
    assert values[1] == pytest.approx(values[0], rel=8e-7)  # measured: 8.4e-8; 0.57 before
    assert relative(pulls[1], pulls[0]) < 2e-4  # measured: 2.0e-5; 6.6e-3 before


def near(distance: float, arithmetic: str, **more):
    """Sides with this relative distance of embeddings: equal modules, f the identity."""
    config = PixelRelationConfig(
        nodes=(4,), arithmetic=arithmetic, teacher_modules="shared", **more
    )
    spec = FeatureSpec((8,), (8,), ("lateral",))
    term = PixelRelation(config, (LevelPair(0, 0, 8),), spec, spec, rngs=nnx.Rngs(0))
    term.adaptation[0].kernel[...] = jnp.eye(8)
    term.adaptation[0].bias[...] = jnp.zeros(8)
    _, t = maps((8, 8))
    noise = np.random.default_rng(1).standard_normal(t.shape).astype(np.float32)
    return evaluate(term, t + np.float32(distance) * noise, t)


def test_the_guard_keeps_the_loss_where_sides_are_nearly_equal():
    """At a relative distance of 1e-3 the plain difference has lost its digits.

    Measured errors there: loss 3.5e-2 without and 5.6e-5 with the guard; gradient 1.0e-3 to the map
    and 4.3e-3 to the parameters, which are not guarded.
    """
    plain = near(1e-3, "plain")
    bare, guarded = near(1e-3, "gram", gram_guard=0.0), near(1e-3, "gram")
    errors = [abs(float(x[0]) / float(plain[0]) - 1) for x in (bare, guarded)]
    assert errors[0] > 1e-3
    assert errors[1] < 5e-4
    assert relative(guarded[1][1], plain[1][1]) < 1e-2
    assert relative(guarded[1][0], plain[1][0]) < 4e-2


def test_auto_chooses_by_the_number_of_pixels():
    term = build("auto", gram_from_pixels=300)
    assert term.uses_gram(300)
    assert not term.uses_gram(299)


def test_bfloat16_maps_keep_three_digits():
    s, t = maps()
    narrow = jnp.asarray(s, jnp.bfloat16), jnp.asarray(t, jnp.bfloat16)
    wide = tuple(np.asarray(x, np.float32) for x in narrow)
    exact, found = evaluate(build("plain"), *wide), evaluate(build("gram"), *narrow)
    assert float(found[0]) == pytest.approx(float(exact[0]), rel=1.8e-6)  # measured: 1.9e-7
    for i in (1, 2):
        assert found[1][i].dtype == jnp.bfloat16
        assert relative(found[1][i], exact[1][i]) < 8e-3  # measured: 1.7e-3, bfloat16's own step
    assert relative(found[1][0], exact[1][0]) < 4e-6  # measured: 4.2e-7
