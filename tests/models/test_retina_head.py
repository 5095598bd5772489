"""RetinaNet's box loss by overlaps, and its towers with and without norms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax.models.dense import assign
from drkd_jax.models.retina_head import RetinaHead, best_detections, retina_losses
from drkd_jax.models.settings import RetinaNetSettings, TestSettings
from tests import margins
from tests.models import small
from tests.models.test_heads import ALL, RNG, RULE, K, by_level, matched, outputs


def test_a_box_loss_of_overlaps_is_one_less_the_generalised_overlap():
    _, targets, _ = small.batch(count=2, filling=1)
    targets.valid[1] = False
    logits, deltas = outputs(3)
    with margins.clear():
        assigned = assign(ALL, targets, RULE.dense, RULE)
    rest = ALL, assigned, targets, RULE, "giou"
    got = retina_losses(by_level(logits), by_level(deltas), *rest)
    plain = retina_losses(by_level(logits), by_level(deltas), *rest[:-1])
    truth, positive, _ = matched(targets, RULE.dense)
    box = normaliser = 0.0
    for b in range(2):
        normaliser += max(positive[b].sum(), 1)
        for a in np.flatnonzero(positive[b]):
            x0, y0, x1, y1 = ALL[a].astype(np.float64)
            w, h = x1 - x0, y1 - y0
            dx, dy, dw, dh = deltas[b, a].astype(np.float64)
            middle = np.array([(x0 + x1) / 2 + dx * w, (y0 + y1) / 2 + dy * h])
            half = np.array([w * np.exp(dw), h * np.exp(dh)]) / 2
            ours, theirs = np.stack([middle - half, middle + half]), targets.boxes[b, truth[b, a]]
            theirs = theirs.astype(np.float64).reshape(2, 2)
            low, high = np.maximum(ours[0], theirs[0]), np.minimum(ours[1], theirs[1])
            common = np.maximum(high - low, 0).prod()
            union = sum((x[1] - x[0]).prod() for x in (ours, theirs)) - common
            around = (np.maximum(ours[1], theirs[1]) - np.minimum(ours[0], theirs[0])).prod()
            box += 1 - common / union + (around - union) / around
    assert positive[0].sum() > 1
    # Measured 2e-8, below the precision of float32; a few of its last digits are allowed.
    assert float(got["box_loss"]) == pytest.approx(box / normaliser, rel=5e-7)
    assert float(got["cls_loss"]) == float(plain["cls_loss"])
    pull = jax.grad(lambda x: retina_losses(by_level(logits), by_level(x), *rest)["box_loss"])
    # Deltas as large as from an untrained head: they are limited, and nothing divides by 0.
    for far in (deltas, deltas * 1e4, np.full_like(deltas, -1e6)):
        pulled = np.asarray(pull(far))
        assert np.isfinite(pulled).all()
        assert not pulled[~np.asarray(positive)].any()


@pytest.mark.parametrize("norm", ["", "gn"])
def test_towers_may_be_cut_after_any_layer(norm):
    settings = RetinaNetSettings(channels=16, head_convs=3, head_norm=norm, head_std=0.3)
    head = RetinaHead(settings, K, RULE, rngs=nnx.Rngs(0), dtype=jnp.float32)
    maps = [jnp.asarray(RNG.normal(size=(2, *side, 16)), jnp.float32) for side in ((6, 8), (3, 4))]
    whole = head(tuple(maps))
    for layers in range(4):
        towers = tuple(head.before(x, layers) for x in maps)
        for got, want in zip(head.outputs(towers, layers), whole, strict=True):
            for level, wanted in zip(got, want, strict=True):
                np.testing.assert_array_equal(level, wanted)
    # With a norm, a level's scale has no effect: measured 6.2e-6 of 13.6. Without one it has.
    scaled = head(tuple(100 * x for x in maps))
    same = [np.allclose(a, b, rtol=0, atol=5e-5) for a, b in zip(scaled[0], whole[0], strict=True)]
    assert same == [norm == "gn"] * 2


def test_a_score_at_the_limit_is_dropped():
    """Missing candidates have score 0: with a limit of 0 they are no detections."""
    boxes = jnp.asarray([[[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]]], jnp.float32)
    scores, labels = jnp.asarray([[0.5, 0.25, 0]]), jnp.zeros((1, 3), jnp.int32)
    for limit, kept in ((0.0, 2), (0.25, 1), (0.2, 2)):
        found = best_detections(boxes, scores, labels, TestSettings(score=limit), None)
        assert int(found.valid.sum()) == kept
