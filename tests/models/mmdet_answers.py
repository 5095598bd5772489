"""mmdetection's answers, our models with the same weights, and the tolerances."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crosscheck.reference.seeded import draw_batch, thin, weight
from drkd_jax.models.roi_head import Regions
from drkd_jax.ops.sampling import Sampled
from drkd_jax.types import Targets
from drkd_jax.weights.libraries import mmdet
from drkd_jax.weights.libraries.key_report import LAYOUTS
from drkd_jax.weights.libraries.understanding import abstract, model_shapes
from tests import jitter, oracles
from tests.models import small
from tests.numeric_report import worst_entry

OWN = Path(__file__).parents[1] / "fixtures" / "mmdet"
FOLDER = Path(os.environ.get("DRKD_MMDET", OWN))
REQUEST = {model["name"]: model for model in json.loads((FOLDER / "request.json").read_text())}
GAP = 1e-4
GRADIENTS = 3e-6  # both sides in float64, kept as float32; measured 2.2e-7, at full size 3.4e-7
KEYS = {  # the library's config keys, and ours
    "model.rpn_head.anchor_generator.scales": "anchors.scale",
    "model.bbox_head.anchor_generator.octave_base_scale": "anchors.scale",
    "model.test_cfg.rpn.nms_pre": "proposals.pre_nms_test",
    "model.test_cfg.rpn.max_per_img": "proposals.max_out_test",
}


def said(model):
    """Our config settings for the changes in the library's config."""
    settings = {} if model["detector"] in ("retinanet", "pyramid") else {"roi_sampling": 0}
    for key, value in model["changes"].items():
        if key in KEYS:
            group, leaf = KEYS[key].split(".")
            number = value[0] if isinstance(value, list) else value
            settings.setdefault(group, {})[leaf] = number
    return settings


def drawn_weights(answers, seed):
    """The library's state dict."""
    state = {name: weight(name, shape, seed) for name, shape in json.loads(str(answers["shapes"]))}
    for key in answers.files:
        if key.startswith("weights|gain|"):
            layer, gain = key.split("|")[2], answers[key]
            kernel = state[f"{layer}.weight"]
            state[f"{layer}.weight"] = kernel * gain.reshape(-1, *[1] * (kernel.ndim - 1))
            state[f"{layer}.bias"] = answers[f"weights|bias|{layer}"]
    return state


def load(name):
    """One model with the library's weights, and the library's answers."""
    model = REQUEST[name]
    answers = np.load(FOLDER / f"{name}.npz")
    theirs = drawn_weights(answers, model.get("seed", 0))
    with jitter.still():  # their float64 gradients belong to exactly these
        exact = drawn_weights(answers, model.get("seed", 0))
    reading = mmdet.read({k: v.shape for k, v in theirs.items()}, {}, f"{name}.pth")
    settings = reading.settings(said(model))
    shapes = model_shapes(reading.part, settings, reading.num_classes)
    table = mmdet.table(shapes)
    assert {entry.theirs for entry in table} == set(theirs)
    graph, state = nnx.split(
        abstract(reading.part, settings, reading.num_classes, jnp.dtype("float32"))
    )

    names = {entry.ours: entry for entry in table}

    def filled(theirs):
        def fill(path, leaf):
            entry = names[jax.tree_util.keystr(path, simple=True, separator=".")]
            array = LAYOUTS[entry.layout].to_ours(theirs[entry.theirs])
            assert array.shape == leaf.shape, path
            return jnp.asarray(array)

        return jax.tree_util.tree_map_with_path(fill, nnx.as_pure(state))

    return SimpleNamespace(
        name=name,
        model=model,
        keep=model.get("keep", 2**31),
        part=reading.part,
        answers=answers,
        graph=graph,
        state=filled(theirs),
        exact_state=lambda: filled(exact),
        wide_graph=lambda: nnx.split(
            abstract(reading.part, settings, reading.num_classes, jnp.dtype("float64"))
        )[0],
        table=names,
    )


def batch(case, number):
    """Images, ground truths and answers of one batch."""
    canvas, sizes = case.model["batches"][number]
    start = f"{number}|"
    answers = {
        key[len(start) :]: case.answers[key] for key in case.answers.files if key.startswith(start)
    }
    drawn = draw_batch(int(answers["seed"]), canvas, sizes, case.model["num_classes"])
    B = len(sizes)
    boxes, labels = np.zeros((B, 6, 4), np.float32), np.zeros((B, 6), np.int32)
    valid = np.zeros((B, 6), bool)
    for b, (own, classes) in enumerate(zip(drawn.boxes, drawn.labels, strict=True)):
        boxes[b, : len(own)], labels[b, : len(own)], valid[b, : len(own)] = own, classes, True
    targets = Targets(np.array(sizes, np.int32), boxes, labels, valid, np.ones(B, bool))
    return drawn.images.transpose(0, 2, 3, 1), targets, answers


def close(case, answers, name, ours, error):
    """Compares a tensor of ours, in the library's layout, relative to its largest number."""
    wanted = answers[name]
    got = thin(name, np.asarray(ours), case.keep)
    assert got.shape == wanted.shape, name
    scale = np.abs(wanted).max()
    worst = np.abs(got - wanted).max() / scale
    print(f"{case.name} {name}: {worst:.1e}")  # pytest -s shows them
    assert worst < error, f"{name}: {worst_entry(got, wanted, atol=error * scale)}"


def channels_first(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


def check_maps(case, body, maps, answers, error=2e-5):
    for level, x in enumerate(body):
        close(case, answers, f"body.{level}", channels_first(x), error)
    for level, x in enumerate(maps):
        close(case, answers, f"pyramid.{level}", channels_first(x), error)
    assert f"pyramid.{len(maps)}" not in answers


def in_their_order(x, shape, last):
    """Anchors of a level, ``[B, A, ...]``, in the library's ``[B, per_cell * last, h, w]``."""
    B, (h, w) = x.shape[0], shape
    return np.asarray(x).reshape(B, h, w, -1).transpose(0, 3, 1, 2)


def check_detections(case, found, answers, batch_size):
    for b in range(batch_size):
        scores = answers[f"detections.scores.{b}"]
        # For a fair comparison, rounding alone must not change any choice.
        assert len(scores) >= 20
        assert np.min(scores[:-1] - scores[1:]) > GAP
        overlaps = oracles.pairwise_iou(*[answers[f"candidates.boxes.{b}"]] * 2)
        labels = answers[f"candidates.labels.{b}"]
        same = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
        assert np.abs(overlaps - 0.5)[same].min() > GAP
        valid = np.asarray(found.valid[b])
        assert valid.sum() == len(scores)
        np.testing.assert_array_equal(found.labels[b][valid], answers[f"detections.labels.{b}"])
        np.testing.assert_allclose(found.scores[b][valid], scores, atol=1e-4)
        np.testing.assert_allclose(
            found.boxes[b][valid], answers[f"detections.boxes.{b}"], atol=0.01
        )


def check_gradients(case, gradients, answers):
    flat = {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(gradients)}
    theirs = {key.split(".", 1)[1] for key in answers if key.startswith("norms.")}
    assert theirs == {case.table[name].theirs for name in flat}  # frozen ones have none
    errors, norms = {}, {}
    for name, gradient in flat.items():
        entry = case.table[name]
        wanted, norm = answers[f"gradients.{entry.theirs}"], answers[f"norms.{entry.theirs}"]
        ours = LAYOUTS[entry.layout].to_theirs(np.asarray(gradient))
        got = thin(entry.theirs, ours, case.keep // 8)
        part = max(np.linalg.norm(wanted), norm * np.sqrt(wanted.size / ours.size))
        errors[entry.theirs] = np.linalg.norm(got - wanted) / part
        norms[entry.theirs] = abs(np.linalg.norm(ours) - norm) / norm
    for kind, found in (("gradients", errors), ("norms", norms)):
        worst = sorted(found, key=found.__getitem__)[-3:]
        said = f"{case.name} {kind}: " + ", ".join(f"{name} {found[name]:.1e}" for name in worst)
        print(said)
        assert found[worst[-1]] < GRADIENTS, said


def their_sample(answers, B):
    """The anchors that the library sampled, padded."""
    names = ("positive", "negative")
    rows = [[answers[f"anchors.{name}.{b}"] for name in names] for b in range(B)]
    most = max(sum(map(len, row)) for row in rows)
    indices, positive = np.zeros((B, most), np.int32), np.zeros((B, most), bool)
    valid = np.zeros((B, most), bool)
    for b, row in enumerate(rows):
        total = np.concatenate(row)
        indices[b, : len(total)] = total
        positive[b, : len(row[0])] = True
        valid[b, : len(total)] = True
    return Sampled(indices, positive, valid)


def their_regions(answers, targets, num_classes):
    """The regions that the library sampled, padded, positives first."""
    B = len(targets.sizes)
    most = max(len(answers[f"sampled.boxes.{b}"]) for b in range(B))
    boxes = np.zeros((B, most, 4), np.float32)
    labels = np.full((B, most), num_classes, np.int32)
    truth, positive = np.zeros_like(boxes), np.zeros((B, most), bool)
    valid = np.zeros((B, most), bool)
    for b in range(B):
        own, classes = answers[f"sampled.boxes.{b}"], answers[f"sampled.labels.{b}"]
        boxes[b, : len(own)], valid[b, : len(own)] = own, True
        labels[b, : len(classes)], positive[b, : len(classes)] = classes, True
        truth[b, : len(classes)] = targets.boxes[b][answers[f"sampled.truths.{b}"]]
    return Regions(boxes, labels, truth, positive, valid)


LOSSES = {
    "cls_loss": "loss_cls",
    "box_loss": "loss_bbox",
    "rpn_cls_loss": "loss_rpn_cls",
    "rpn_box_loss": "loss_rpn_bbox",
    "roi_cls_loss": "loss_cls",
    "roi_box_loss": "loss_bbox",
}


def check_losses(losses, answers):
    assert len(losses) == sum(key.startswith("losses.") for key in answers)
    for name, value in losses.items():
        wanted = float(answers[f"losses.{LOSSES[name]}"])
        assert float(value) == pytest.approx(wanted, rel=1e-5), name


def compiled(case, run):
    """``run(detector, *arrays) -> (losses, more)``, compiled twice.

    Returns:
        The function itself in float32, as in training, and the gradient of the sum of its losses in
        float64, like the library's: a ReLU whose input is near 0 could change a float32 gradient by
        a thousandth and more, on some processors only.
    """
    jit = partial(jax.jit, compiler_options=small.QUICK)
    call = jit(lambda state, *arrays: run(nnx.merge(case.graph, state, copy=True), *arrays))

    def exact_gradients(images, *others):
        drawn = case.exact_state()
        with jax.enable_x64(True):
            state = jax.tree.map(lambda x: x.astype(jnp.float64), drawn)
            detector = nnx.merge(case.wide_graph(), state)
            graph, trained, rest = nnx.split(detector, detector.is_trained, ...)

            def total(trained, rest, *arrays):
                losses, _ = run(nnx.merge(graph, trained, rest, copy=True), *arrays)
                return sum(losses.values())

            return jit(jax.grad(total))(trained, rest, images.astype(np.float64), *others)

    return partial(call, case.state), exact_gradients


def padded(answers, name, B, rows):
    out, valid = np.zeros((B, rows, 4), np.float32), np.zeros((B, rows), bool)
    for b in range(B):
        own = answers[f"{name}.{b}"]
        out[b, : len(own)], valid[b, : len(own)] = own, True
    return out, valid
