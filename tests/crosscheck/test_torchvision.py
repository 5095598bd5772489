"""Our detectors against the answers of torchvision's own to the same tensors.

tests/fixtures/torchvision and torchvision_v2 contain the answers of two narrow networks each; their
READMEs explain how to generate them. `python -m drkd_jax crosscheck --torchvision` compares the
full-size networks.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from crosscheck import torchvision
from crosscheck.compare import Row
from crosscheck.network import Network, load
from crosscheck.reference.seeded import Model
from crosscheck.stages import batch as batch_of
from drkd_jax.errors import UserError
from drkd_jax.models.dense import assign
from drkd_jax.types import Features
from tests import jitter, margins, oracles

FIXTURES = Path(__file__).parents[1] / "fixtures"
FOLDERS = {1: FIXTURES / "torchvision", 2: FIXTURES / "torchvision_v2"}
MODELS = [
    Model(**values)
    for folder in FOLDERS.values()
    for values in json.loads((folder / "request.json").read_text())
]
# 20 convolutions and as many norms in the body, and two arrays for every other layer; the "v2"
# RetinaNet's towers have a kernel and a norm, and Faster R-CNN's folded layers have none.
PARAMETERS = {
    "faster_rcnn": 3 * 20 + 2 * (8 + 3 + 4),
    "retinanet": 3 * 20 + 2 * (8 + 10),
    "faster_rcnn_v2": 3 * 20 + 2 * (4 + 3),
    "retinanet_v2": 3 * 20 + 2 * (8 + 2) + 3 * 8,
}
BATCHES = [(model, batch) for model in MODELS for batch in range(len(model.batches))]
FAST_COMPILE = {"xla_backend_optimization_level": 0}


class Compared:
    def __init__(self, model):
        self.model = model
        self.answers = dict(np.load(FOLDERS[model.version] / f"{model.name}.npz"))
        self.network = Network(model, *load(model, self.answers), FAST_COMPILE)
        with jitter.still():  # their gradients, in float64, belong to exactly these weights
            self.exact = Network(model, *load(model, self.answers), FAST_COMPILE)

    def rows(self, answers, kind, batch=0):
        if kind == "inference":
            one = batch_of(self.network, answers, batch)
        else:
            with jitter.still():
                one = batch_of(self.exact, answers, batch)
        return {row[0]: row for row in getattr(one, kind)()}


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: model.name)
def compared(request):
    return Compared(request.param)


each_batch = pytest.mark.parametrize(
    ("compared", "batch"), BATCHES, indirect=["compared"], ids=lambda x: getattr(x, "name", str(x))
)


def failures(rows):
    return {name: off for name, (_, _, off, tolerance) in rows.items() if not off <= tolerance}


@each_batch
def test_every_stage_and_every_detection_is_torchvisions(compared, batch):
    rows = compared.rows(compared.answers, "inference", batch)
    assert not failures(rows)
    names = {name.split(".")[0] for name in rows}
    wanted = {"body", "pyramid", "class logits", "class deltas", "detections"}
    if compared.model.detector == "faster_rcnn":
        wanted |= {"rpn logits", "rpn deltas", "proposals", "regions"}
    assert names == wanted


@each_batch
def test_matches_losses_and_all_gradients_are_torchvisions(compared, batch):
    rows = compared.rows(compared.answers, "training", batch)
    assert not failures(rows)
    assert sum(name.startswith("loss ") for name in rows) == (
        4 if compared.model.detector == "faster_rcnn" else 2
    )
    if batch == 0:
        worst = max(off for name, (_, _, off, _) in rows.items() if name.startswith("gradients."))
        print(f"{compared.model.name}: gradients to {worst:.1e}")
        parameters = sum(name.startswith("gradients.") for name in rows)
        assert parameters == PARAMETERS[compared.model.name]


def test_a_wrong_answer_is_seen(compared):
    wrong = dict(compared.answers)
    for name in ("0|detections.labels.0", "0|matched.1", "0|body.2", "0|detections.boxes.1"):
        values = wrong[name].copy()
        values.flat[1] += 1
        wrong[name] = values
    seen = failures(compared.rows(wrong, "inference")) | failures(compared.rows(wrong, "training"))
    assert sorted(name.split(" of ")[0] for name in seen) == [
        "body.2",
        "detections.0: classes",
        "detections.1: boxes, pixels",
        "matches",
    ]


@each_batch
def test_no_choice_hangs_on_rounding(compared, batch):
    one = batch_of(compared.network, compared.answers, batch)
    network, targets = compared.network, one._targets()
    detector = network.merged(network.state)
    found = network.infer(network.state, one.images, one.sizes, one._proposals()[0])
    maps = found["pyramid"]
    anchors, rule = network.anchors(one.images)
    with margins.clear(floor=0.05):
        assign(anchors, targets, rule.rpn if network.two_stages else rule.dense, rule)
        if network.two_stages:
            # Among a thousand proposals some pair is always near, so checks only the sampled ones.
            _, regions = one._drawn(targets)
            detector.roi.pool(maps, detector.spec, regions.boxes)
        else:
            detector.predict(Features(maps, detector.spec), one.sizes)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_no_detection_of_the_fixture_hangs_on_rounding(model):
    answers = np.load(FOLDERS[model.version] / f"{model.name}.npz")
    for i, (_, sizes) in enumerate(model.batches):
        for b in range(len(sizes)):
            boxes, scores, labels = (
                answers[f"{i}|detections.{key}.{b}"] for key in ("boxes", "scores", "labels")
            )
            assert len(scores) >= 20
            assert (scores[:-1] - scores[1:]).min() > 1e-4
            assert scores[-1] > 0.05 + 1e-4
            overlaps = oracles.pairwise_iou(boxes, boxes)[labels[:, None] == labels[None]]
            assert not np.any(np.abs(overlaps - 0.5) < 1e-4)
            # Also for the boxes that NMS removed: measured when the fixture was made.
            assert float(answers[f"{i}|nearest overlap"]) > 1e-4


def test_live_faults_are_named(tmp_path):
    with pytest.raises(UserError, match="--only grid"):
        torchvision.live(tmp_path, "python", "grid")
    with pytest.raises(UserError, match="no-such-python"):
        torchvision.live(tmp_path, "no-such-python", "")
    silent = tmp_path / "python"
    silent.write_text("#!/bin/sh\necho no torchvision >&2\nexit 1\n")
    silent.chmod(0o755)
    with pytest.raises(UserError, match="stopped: no torchvision"):
        torchvision.live(tmp_path, str(silent), "retinanet")
    request = json.loads((tmp_path / "request.json").read_text())
    assert {model["detector"] for model in request} == {"retinanet"}
    assert [Model(**values) for values in request]


def test_the_table_shows_the_worst_of_each_stage_and_every_failure():
    rows = [
        Row("net", "body.0", 1.0, 1e-6, 1e-5),
        Row("net", "body.1", 1.0, 2e-6, 1e-5),
        Row("net", "body.2", 1.0, 3e-2, 1e-5),
        Row("net", "detections.0: scores, score", 1e-6, 1e-6, 1e-4),
        Row("net", "detections.0: boxes, pixels", 1e-3, 1e-3, 1e-2),
    ]
    lines = torchvision.table(rows, everything=False)
    assert [line.split()[1] for line in lines[1:]] == ["body.1", "body.2"] + ["detections.0:"] * 2
    assert [line.endswith("FAILS") for line in lines[1:]] == [False, True, False, False]
    assert len(torchvision.table(rows, everything=True)) == 6
