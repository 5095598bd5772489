"""Our side of `crosscheck --torchvision`: whole detectors against torchvision's, stage by stage.

Both start at the same padded tensor with the same weights; see drkd_jax/reference/torchvision.py.
The other side's gradients are computed in float64, and `check` computes ours so as well: in float32
the few ReLUs whose input is within rounding of 0 fall on one side or the other, and each library's
own gradients are up to a thousandth off.
Letters: B pictures, P proposals, G padded ground truths, A anchors.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from drkd_jax import models
from drkd_jax.cli.crosscheck.compare import Row
from drkd_jax.errors import UserError
from drkd_jax.models.dense import Assigned, assign
from drkd_jax.models.roi_head import Regions
from drkd_jax.models.rpn import propose
from drkd_jax.ops.sampling import Sampled
from drkd_jax.reference.seeded import Drawn, Model, pictures, thin, weight
from drkd_jax.types import Features, Targets
from drkd_jax.weights.account import give
from drkd_jax.weights.layouts import LAYOUTS, their_shape
from drkd_jax.weights.torchvision import entries

Answers = Mapping[str, np.ndarray]
Arrays = dict[str, np.ndarray]

# Relative norms, but where a line of the table says "score", "pixels" or "count".
FEATURES, LOSSES = 1e-5, 1e-5
GRADIENTS = 4e-6  # in float64; measured 4.7e-7
ROUNDED_GRADIENTS = 2.5e-5  # ours in float32, of a narrow network
SCORES, PIXELS = 1e-4, 0.01
TRUTHS, PROPOSALS, ANCHORS, REGIONS = 8, 1000, 256, 512  # rows a picture, at most
LOSS_NAMES = {
    "loss_objectness": "rpn_cls_loss",
    "loss_rpn_box_reg": "rpn_box_loss",
    "loss_classifier": "roi_cls_loss",
    "loss_box_reg": "roi_box_loss",
    "classification": "cls_loss",
    "bbox_regression": "box_loss",
}
# Few classes: among many, scores crowd, and hardly a picture has 20 that are clear of each other.
# `first` is the batch that was found by looking; another version of torch looks on from there.
_BATCH = ((256, 320), [(250, 320), (256, 290)])
FULL = (
    Model("faster_rcnn R50", "faster_rcnn", 8, [_BATCH], first=[23]),
    Model("retinanet R50", "retinanet", 8, [_BATCH], first=[7]),
)


def settings_of(model: Model) -> dict[str, Any]:
    """Our settings for the same network."""
    settings: dict[str, Any] = {
        "detector": model.detector,
        "convention": "torchvision",
        "backbone": {"depth": model.depth, "frozen_stages": 0},
    }
    if model.width:
        settings["backbone"]["width"] = model.width
        settings["channels"] = model.channels
        if model.detector == "faster_rcnn":
            settings["fc"] = model.fc
    return settings


def load(model: Model, answers: Answers) -> tuple[Any, Any]:
    """Our detector with the weights of the other side, apart into graph and state."""
    detector = models.abstract_detector(settings_of(model), model.num_classes)
    graph, state = nnx.split(detector)
    flat = nnx.to_flat_state(state)
    shapes = {_name(path): tuple(slot.shape) for path, slot in flat}
    arrays = {}
    for entry in entries(shapes):
        drawn = weight(entry.theirs, their_shape(entry.layout, shapes[entry.ours]), model.seed)
        module, _, leaf = entry.theirs.rpartition(".")
        if f"weights|gain|{module}" in answers:
            gain = answers[f"weights|gain|{module}"]
            bias = answers[f"weights|bias|{module}"]
            drawn = drawn * gain.reshape(-1, *[1] * (drawn.ndim - 1)) if leaf == "weight" else bias
        arrays[entry.ours] = LAYOUTS[entry.layout].to_ours(drawn)
    filled = [(path, slot.replace(jnp.asarray(arrays[_name(path)]))) for path, slot in flat]
    return graph, nnx.from_flat_state(filled)


def check(model: Model, answers: Answers, options: Mapping[str, Any] | None = None) -> list[Row]:
    """Every stage of a model, on every batch, beside what the other side said.

    Gradients are in float64, everything else is in float32.

    Args:
        model: what was run.
        answers: the other side's tensors.
        options: for the compiler.
    """
    network = Network(model, *load(model, answers), options)
    rows: list[Row] = []
    for i, (canvas, _) in enumerate(model.batches):
        one = batch(network, answers, i, exact=True)
        where = f"{model.name} {canvas[0]}x{canvas[1]}"
        rows += [Row(where, *row) for row in (*one.inference(), *one.training())]
    return rows


def batch(network: Network, answers: Answers, number: int, *, exact: bool = False) -> Batch:
    """One batch of a model, with the other side's tensors of it; gradients in float64 if exact."""
    model = network.model
    canvas, sizes = model.batches[number]
    start = f"{number}|"
    theirs = {name.removeprefix(start): answers[name] for name in answers if name.startswith(start)}
    drawn = pictures(int(theirs["seed"]), canvas, sizes, model.num_classes)
    return Batch(network, drawn, np.asarray(sizes, np.int32), theirs, exact)


def live(folder: Path, python: str, only: str) -> tuple[list[Row], str]:
    """Runs torchvision's side of the full-size networks in another interpreter, then ours.

    Args:
        folder: for the files that pass between the two.
        python: an interpreter that has torch and torchvision.
        only: run the networks that have this in their name.

    Returns:
        All compared tensors, and the versions of the other side.

    Raises:
        UserError: the other side stops, or `only` names no network.
    """
    chosen = [model for model in FULL if only in model.name]
    if not chosen:
        raise UserError(f"--only {only}: no network has that in its name")
    request = json.dumps([dataclasses.asdict(model) for model in chosen], indent=1)
    (folder / "request.json").write_text(request)
    root = Path(__file__).resolve().parents[3]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [python, "-m", "drkd_jax.reference.torchvision", str(folder)]
    environment = {**os.environ, "PYTHONPATH": path}
    try:
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"--torch-python {python}: cannot be started ({error})") from error
    if run.returncode:
        lines = run.stderr.strip().splitlines() or ["no message"]
        raise UserError(f"torchvision's side in {python} stopped: {lines[-1]}")
    rows: list[Row] = []
    for model in chosen:
        with np.load(folder / f"{model.name}.npz") as answers:
            rows += check(model, dict(answers))
    return rows, run.stdout.strip()


def table(rows: Sequence[Row], everything: bool) -> list[str]:
    """One line a tensor; without `everything` the worst of each stage of each batch.

    A count that is wrong, a score or a pixel stands in the column of the relative error too: it
    is what the tolerance holds for.
    """
    shown: dict[tuple[str, str], Row] = {}
    for row in rows:
        stage = row.tensor if everything else row.tensor.replace(":", ".", 1).split(".")[0]
        unit = row.tensor.rpartition(", ")[2] if row.tensor.startswith("detections") else ""
        key = row.component, row.tensor if everything or not row.passes else f"{stage}{unit}"
        if key not in shown or not row.relative <= shown[key].relative:
            shown[key] = row
    wide = max(len(row.component) for row in rows)
    long = max(len(row.tensor) for row in shown.values())
    return [f"{'network':{wide}}  {'tensor':{long}}  absolute  relative  tolerance  verdict"] + [
        f"{row.component:{wide}}  {row.tensor:{long}}  {row.absolute:8.1e}  {row.relative:8.1e}  "
        f"{row.tolerance:9.0e}  {'ok' if row.passes else 'FAILS'}"
        for row in shown.values()
    ]


class Network:
    """Our detector, compiled once for each canvas."""

    def __init__(self, model: Model, graph: Any, state: Any, options: Mapping[str, Any] | None):
        self.model, self.graph, self.state, self.options = model, graph, state, options
        self.two_stages = model.detector == "faster_rcnn"
        self.params, self.rest = nnx.split_state(state, nnx.Param, ...)
        jit = partial(jax.jit, compiler_options=dict(options or {}))
        self.infer = jit(self._infer)
        self.lose = jit(self._lose)
        self.pull = jit(jax.value_and_grad(self._lose, has_aux=True))

    def merged(self, state: Any) -> Any:
        """The detector, with whatever its class has."""
        return nnx.merge(self.graph, state, copy=True)

    def exact_gradients(self, images: np.ndarray, *given: Any) -> Any:
        """The gradient of the sum of the losses, computed in float64."""
        with jax.enable_x64(True):
            settings, K = settings_of(self.model), self.model.num_classes
            detector = models.abstract_detector(settings, K, dtype=jnp.float64)
            state = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), self.state)
            wide = Network(self.model, nnx.split(detector)[0], state, self.options)
            _, pulled = wide.pull(wide.params, wide.rest, images.astype(np.float64), *given)
            return pulled

    def anchors(self, images: np.ndarray) -> tuple[np.ndarray, Any]:
        """The anchors of all levels, and the conventions."""
        detector = self.merged(self.state)
        shapes = jax.eval_shape(detector.features, images).maps
        maps = tuple(np.zeros(m.shape, np.float32) for m in shapes)
        return np.concatenate(detector._anchors(Features(maps, detector.spec))), detector.convention

    def _infer(
        self, state: Any, images: jax.Array, sizes: jax.Array, regions: jax.Array
    ) -> dict[str, Any]:
        detector = self.merged(state)
        body = detector.backbone(images, None)
        features = Features(detector.neck(body), detector.spec)
        found = {"body": body[detector.neck.skipped :], "pyramid": features.maps}
        found["detections"] = detector.predict(features, sizes)
        if not self.two_stages:
            logits, deltas = detector.head(features.maps)
            return {**found, "class logits": logits, "class deltas": deltas}
        found["rpn logits"], found["rpn deltas"] = detector.rpn(features.maps)
        limits = detector.settings.proposals
        found["proposals"] = propose(
            found["rpn logits"],
            found["rpn deltas"],
            detector._anchors(features),
            sizes,
            pre_nms=limits.pre_nms_test,
            max_out=limits.max_out_test,
            nms_threshold=limits.nms,
            convention=detector.convention,
        )
        found["regions"] = detector.roi.pool(features.maps, detector.spec, regions)
        logits, deltas = detector.roi(features.maps, detector.spec, regions)
        return {**found, "class logits": logits, "class deltas": deltas}

    def _lose(
        self,
        params: Any,
        rest: Any,
        images: jax.Array,
        targets: Targets,
        assigned: Assigned,
        drawn: Any,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        detector = self.merged(nnx.merge_state(params, rest))
        features = detector.features(images)
        if drawn is None:
            keys = jax.vmap(jax.random.key)(jnp.arange(len(images)))
            losses = detector.losses(features, targets, keys)
        else:
            outputs = detector.rpn(features.maps)
            losses = detector.losses_at(features, targets, outputs, assigned, *drawn)
        return jnp.asarray(sum(losses.values())), losses


Measured = tuple[str, float, float, float]  # tensor, absolute, relative, tolerance


class Batch:
    """One batch on our side, beside the other's answers."""

    def __init__(
        self, network: Network, drawn: Drawn, sizes: np.ndarray, theirs: Answers, exact: bool
    ):
        self.network, self.drawn, self.sizes, self.theirs = network, drawn, sizes, theirs
        self.exact = exact
        self.model, self.two_stages = network.model, network.two_stages
        self.images = drawn.images.transpose(0, 2, 3, 1)

    # In evaluation.

    def inference(self) -> Iterator[Measured]:
        """Every stage, and the detections."""
        regions, there = self._proposals()
        found = self.network.infer(self.network.state, self.images, self.sizes, regions)
        found = jax.tree.map(np.asarray, found)
        for name in ("body", "pyramid"):
            for level, values in enumerate(found[name]):
                if f"{name}.{level}" in self.theirs:
                    yield self._near(f"{name}.{level}", _channels_first(values))
        if self.two_stages:
            yield from self._first_stage(found)
            yield from self._second_stage(found, there)
        else:
            for name in ("class logits", "class deltas"):
                yield self._near(name, np.concatenate(found[name], axis=1))
        yield from self._detections(found["detections"])

    def _proposals(self) -> tuple[np.ndarray, np.ndarray]:
        """The other side's proposals ``[B, P, 4]``, and which rows there are."""
        if not self.two_stages:
            return np.zeros((len(self.sizes), 1, 4), np.float32), np.zeros((1, 1), bool)
        found = [self.theirs[f"proposals.{b}"] for b in range(len(self.sizes))]
        return _stack(found, PROPOSALS)

    def _first_stage(self, found: dict[str, Any]) -> Iterator[Measured]:
        for name, width in (("rpn logits", 1), ("rpn deltas", 4)):
            for level, (values, maps) in enumerate(zip(found[name], found["pyramid"], strict=True)):
                # A convolution's channels are (anchor, number of a delta).
                B, h, w, _ = maps.shape
                wide = values.reshape(B, h, w, -1)
                assert wide.shape[-1] % width == 0
                yield self._near(f"{name}.{level}", _channels_first(wide))
        mine = found["proposals"]
        for b in range(len(self.sizes)):
            boxes, theirs = mine.boxes[b][mine.valid[b]], self.theirs[f"proposals.{b}"]
            yield self._same_set(f"proposals.{b}", boxes, theirs)

    def _second_stage(self, found: dict[str, Any], there: np.ndarray) -> Iterator[Measured]:
        yield self._near("regions", _channels_first(found["regions"][there]))
        # Ours has the background last, theirs first.
        yield self._near("class logits", np.roll(found["class logits"][there], 1, axis=-1))
        yield self._near("class deltas", found["class deltas"][there])

    def _detections(self, mine: Any) -> Iterator[Measured]:
        for b in range(len(self.sizes)):
            rows = mine.valid[b]
            theirs = {
                key: self.theirs[f"detections.{key}.{b}"] for key in ("boxes", "scores", "labels")
            }
            labels = mine.labels[b][rows] + self.two_stages
            same = len(labels) == len(theirs["labels"])
            wrong = float((labels != theirs["labels"]).sum()) if same else float("inf")
            count = len(theirs["labels"])
            yield f"detections.{b}: classes of {count}, count wrong", wrong, wrong, 0.0
            for key, unit, tolerance in (("scores", "score", SCORES), ("boxes", "pixels", PIXELS)):
                values = getattr(mine, key)[b][rows]
                off = float(np.abs(values - theirs[key]).max()) if same else float("inf")
                yield f"detections.{b}: {key}, {unit}", off, off, tolerance

    # In training.

    def training(self) -> Iterator[Measured]:
        """Matches, losses, and gradients where the other side has them."""
        network, targets = self.network, self._targets()
        anchors, rule = network.anchors(self.images)
        assigned = assign(anchors, targets, rule.rpn if self.two_stages else rule.dense, rule)
        yield from self._matches(assigned)
        drawn = self._drawn(targets) if self.two_stages else None
        given = self.images, targets, assigned, drawn
        wanted = any(name.startswith("gradients.") for name in self.theirs)
        pulled = None
        if wanted and not self.exact:
            (_, losses), pulled = network.pull(network.params, network.rest, *given)
        else:
            _, losses = network.lose(network.params, network.rest, *given)
        if wanted and self.exact:
            pulled = network.exact_gradients(*given)
        for name, ours in LOSS_NAMES.items():
            if f"losses.{name}" in self.theirs:
                theirs = float(self.theirs[f"losses.{name}"])
                off = abs(float(losses[ours]) - theirs)
                yield f"loss {ours}", off, off / theirs, LOSSES
        if pulled is not None:
            yield from self._gradients(pulled)

    def _targets(self) -> Targets:
        boxes, valid = _stack(self.drawn.boxes, TRUTHS)
        labels, _ = _stack(self.drawn.labels, TRUTHS)
        there = np.ones(len(self.sizes), bool)
        return Targets(self.sizes, boxes, labels.astype(np.int32), valid, there)

    def _matches(self, assigned: Assigned) -> Iterator[Measured]:
        wrong = 0
        for b in range(len(self.sizes)):
            said = self.theirs[f"matched.{b}"]
            positive, negative = (np.asarray(x[b]) for x in (assigned.positive, assigned.negative))
            truth = np.asarray(assigned.truth[b])
            wrong += int(((said >= 0) != positive).sum() + ((said == -1) != negative).sum())
            wrong += int((truth[positive] != said[positive]).sum())
        yield f"matches of {assigned.positive.size} anchors, count wrong", wrong, wrong, 0.0

    def _drawn(self, targets: Targets) -> tuple[Sampled, Regions]:
        """The other side's draw of anchors and regions."""
        B = len(self.sizes)
        chosen = [
            [self.theirs[f"anchors.{x}.{b}"] for b in range(B)] for x in ("positive", "negative")
        ]
        indices, valid = _stack([np.concatenate(two) for two in zip(*chosen, strict=True)], ANCHORS)
        positive = np.arange(indices.shape[1]) < np.array([[len(p)] for p in chosen[0]])
        boxes, region_valid = _stack([self.theirs[f"sampled.boxes.{b}"] for b in range(B)], REGIONS)
        labels, _ = _stack([self.theirs[f"sampled.labels.{b}"] for b in range(B)], REGIONS)
        truths, _ = _stack([self.theirs[f"sampled.truths.{b}"] for b in range(B)], REGIONS)
        truth_boxes = np.take_along_axis(np.asarray(targets.boxes), truths[..., None], axis=1)
        regions = Regions(
            boxes,
            np.where(labels > 0, labels - 1, self.model.num_classes).astype(np.int32),
            truth_boxes,
            (labels > 0) & region_valid,
            region_valid,
        )
        return Sampled(indices, positive, valid), regions

    def _gradients(self, pulled: Any) -> Iterator[Measured]:
        arrays = {_name(path): np.asarray(slot[...]) for path, slot in nnx.to_flat_state(pulled)}
        tolerance = GRADIENTS if self.exact else ROUNDED_GRADIENTS
        for name, values in give(arrays, entries(arrays)).items():
            yield self._near(f"gradients.{name}", values, name, tolerance)
            norm, theirs = float(np.linalg.norm(values)), float(self.theirs[f"norms.{name}"])
            yield f"norms.{name}", abs(norm - theirs), abs(norm - theirs) / theirs, tolerance

    # Distances.

    def _near(
        self, name: str, ours: np.ndarray, key: str | None = None, tolerance: float = FEATURES
    ) -> Measured:
        theirs = self.theirs[name].astype(np.float64)
        off = thin(key or name, ours, self.model.keep) - theirs
        size = float(np.linalg.norm(theirs))
        return name, float(np.abs(off).max()), float(np.linalg.norm(off)) / size, tolerance

    def _same_set(self, name: str, ours: np.ndarray, theirs: np.ndarray) -> Measured:
        """How many boxes of either side the other has not; the largest distance of the others."""
        apart = np.abs(ours[:, None] - theirs[None]).max(-1)
        nearest = np.concatenate([apart.min(0), apart.min(1)])
        alone = nearest > PIXELS
        farthest = float(nearest[~alone].max(initial=0))
        return f"{name}: of {len(theirs)}, count wrong", farthest, float(alone.sum()), 0.0


def _stack(rows: list[np.ndarray], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Ragged arrays side by side, filled up with 0, and which rows there are."""
    stacked = np.zeros((len(rows), most, *rows[0].shape[1:]), rows[0].dtype)
    valid = np.zeros((len(rows), most), bool)
    for i, values in enumerate(rows):
        stacked[i, : len(values)] = values
        valid[i, : len(values)] = True
    return stacked, valid


def _channels_first(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -1, 1)


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
