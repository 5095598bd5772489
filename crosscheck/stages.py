"""Compares one batch stage by stage with torchvision's.

Letters: B images, P proposals, G padded ground truths, A anchors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from crosscheck.network import Answers, Network, flat_name
from crosscheck.reference.seeded import FOLDED, Drawn, draw_batch, thin
from drkd_jax.models.dense import Assigned, assign
from drkd_jax.models.roi_head import Regions
from drkd_jax.ops.sampling import Sampled
from drkd_jax.types import Targets
from drkd_jax.weights.libraries.key_report import give
from drkd_jax.weights.libraries.torchvision import table

# Relative norms, unless a line of the table says "score", "pixels" or "count".
FEATURES, LOSSES = 1e-5, 1e-5
GRADIENTS = 4e-6  # both sides in float64; measured 6.3e-7
# For folded norms: their kernels were rounded to float32 first; measured 1.2e-5.
FOLDED_GRADIENTS = 4e-5
SCORES, PIXELS = 1e-4, 0.01
TRUTHS, PROPOSALS, ANCHORS, REGIONS = 8, 1000, 256, 512  # maximum rows per image
LOSS_NAMES = {
    "loss_objectness": "rpn_cls_loss",
    "loss_rpn_box_reg": "rpn_box_loss",
    "loss_classifier": "roi_cls_loss",
    "loss_box_reg": "roi_box_loss",
    "classification": "cls_loss",
    "bbox_regression": "box_loss",
}

Measured = tuple[str, float, float, float]  # tensor, absolute, relative, tolerance


def batch(network: Network, answers: Answers, number: int) -> Batch:
    """One batch of a model, with the other side's tensors."""
    model = network.model
    canvas, sizes = model.batches[number]
    start = f"{number}|"
    theirs = {name.removeprefix(start): answers[name] for name in answers if name.startswith(start)}
    drawn = draw_batch(int(theirs["seed"]), canvas, sizes, model.num_classes)
    return Batch(network, drawn, np.asarray(sizes, np.int32), theirs)


class Batch:
    """Compares one batch on our side with the other side's answers."""

    def __init__(self, network: Network, drawn: Drawn, sizes: np.ndarray, theirs: Answers):
        self.network, self.drawn, self.sizes, self.theirs = network, drawn, sizes, theirs
        self.model, self.two_stages = network.model, network.two_stages
        self.images = drawn.images.transpose(0, 2, 3, 1)

    # In evaluation.

    def inference(self) -> Iterator[Measured]:
        """Compares all stages and the detections."""
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
        """The other side's proposals ``[B, P, 4]``, and which rows are valid."""
        if not self.two_stages:
            return np.zeros((len(self.sizes), 1, 4), np.float32), np.zeros((1, 1), bool)
        found = [self.theirs[f"proposals.{b}"] for b in range(len(self.sizes))]
        return _stack(found, PROPOSALS)

    def _first_stage(self, found: dict[str, Any]) -> Iterator[Measured]:
        for name, width in (("rpn logits", 1), ("rpn deltas", 4)):
            for level, (values, maps) in enumerate(zip(found[name], found["pyramid"], strict=True)):
                # A convolution's channels are (anchor, delta component).
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
        """Compares matches, losses, and gradients if the other side has them."""
        network, targets = self.network, self._targets()
        anchors, rule = network.anchors(self.images)
        assigned = assign(anchors, targets, rule.rpn if self.two_stages else rule.dense, rule)
        yield from self._matches(assigned)
        drawn = self._drawn(targets) if self.two_stages else None
        given = self.images, targets, assigned, drawn
        _, losses = network.lose(network.params, network.rest, *given)
        for name, ours in LOSS_NAMES.items():
            if f"losses.{name}" in self.theirs:
                theirs = float(self.theirs[f"losses.{name}"])
                off = abs(float(losses[ours]) - theirs)
                yield f"loss {ours}", off, off / theirs, LOSSES
        if any(name.startswith("gradients.") for name in self.theirs):
            # In float32, rounding can put a ReLU's input near 0 on different sides of 0.
            yield from self._gradients(network.exact_gradients(*given))

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
        """The anchors and regions that the other side sampled."""
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
        arrays = {
            flat_name(path): np.asarray(slot[...]) for path, slot in nnx.to_flat_state(pulled)
        }
        folded = FOLDED if self.two_stages and self.model.version == 2 else ()
        tolerance = FOLDED_GRADIENTS if folded else GRADIENTS
        for name, values in give(arrays, table(arrays)).items():
            if name.startswith(folded):
                continue
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
        """Counts boxes that only one side has; also the largest distance of the others."""
        apart = np.abs(ours[:, None] - theirs[None]).max(-1)
        nearest = np.concatenate([apart.min(0), apart.min(1)])
        alone = nearest > PIXELS
        farthest = float(nearest[~alone].max(initial=0))
        return f"{name}: of {len(theirs)}, count wrong", farthest, float(alone.sum()), 0.0


def _stack(rows: list[np.ndarray], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Stacks ragged arrays, padded with 0; also returns which rows are valid."""
    stacked = np.zeros((len(rows), most, *rows[0].shape[1:]), rows[0].dtype)
    valid = np.zeros((len(rows), most), bool)
    for i, values in enumerate(rows):
        stacked[i, : len(values)] = values
        valid[i, : len(values)] = True
    return stacked, valid


def _channels_first(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -1, 1)
