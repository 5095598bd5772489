"""Our detector with torchvision's weights, compiled for `crosscheck --torchvision`.

Letters: B images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crosscheck.reference.seeded import Model, weight
from drkd_jax import models
from drkd_jax.models.dense import Assigned
from drkd_jax.models.rpn import propose
from drkd_jax.types import Features, Targets
from drkd_jax.weights.libraries.key_report import LAYOUTS, their_shape
from drkd_jax.weights.libraries.torchvision import table
from drkd_jax.weights.libraries.understanding import understand

Answers = Mapping[str, np.ndarray]

# The additional settings of torchvision's "v2" networks.
VERSION_2: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "faster_rcnn": {"rpn_convs": 2, "roi_convs": 4, "roi_fcs": 1},
        "retinanet": {"extra": "conv_c5", "head_norm": "gn", "box_loss": "giou"},
    }
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
    if model.version == 2:
        settings |= VERSION_2[model.detector]
    return settings


def load(model: Model, answers: Answers) -> tuple[Any, Any]:
    """Our detector with the weights of the other side, split into graph and state."""
    detector = models.abstract_detector(settings_of(model), model.num_classes)
    graph, state = nnx.split(detector)
    flat = nnx.to_flat_state(state)
    shapes = {flat_name(path): tuple(slot.shape) for path, slot in flat}
    if model.version == 2:  # has norms that our weight reader folds
        theirs = {k: tuple(v) for k, v in json.loads(str(answers["weights|shapes"])).items()}
        said = {"backbone": {"frozen_stages": 0}}
        read = understand(theirs, {}, Path(model.name), said, "torchvision")
        arrays = read.arrays({k: _drawn(k, v, model, answers) for k, v in theirs.items()})
    else:
        arrays = {
            entry.ours: LAYOUTS[entry.layout].to_ours(
                _drawn(entry.theirs, their_shape(entry.layout, shapes[entry.ours]), model, answers)
            )
            for entry in table(shapes)
        }
    filled = [(path, slot.replace(jnp.asarray(arrays[flat_name(path)]))) for path, slot in flat]
    return graph, nnx.from_flat_state(filled)


def _drawn(name: str, shape: tuple[int, ...], model: Model, answers: Answers) -> np.ndarray:
    """An array of the other side by its name, scaled if that side scaled it."""
    drawn = weight(name, shape, model.seed)
    module, _, leaf = name.rpartition(".")
    if f"weights|gain|{module}" not in answers:
        return drawn
    if leaf != "weight":
        return answers[f"weights|bias|{module}"]
    return drawn * answers[f"weights|gain|{module}"].reshape(-1, *[1] * (drawn.ndim - 1))


class Network:
    """Our detector, compiled once per canvas."""

    def __init__(self, model: Model, graph: Any, state: Any, options: Mapping[str, Any] | None):
        self.model, self.graph, self.state, self.options = model, graph, state, options
        self.two_stages = model.detector == "faster_rcnn"
        self.params, self.rest = nnx.split_state(state, nnx.Param, ...)
        jit = partial(jax.jit, compiler_options=dict(options or {}))
        self.infer = jit(self._infer)
        self.lose = jit(self._lose)
        self.pull = jit(jax.grad(self._lose, has_aux=True))

    def merged(self, state: Any) -> Any:
        """The detector, with all methods of its class."""
        return nnx.merge(self.graph, state, copy=True)

    def exact_gradients(self, images: np.ndarray, *given: Any) -> Any:
        """The gradient of the sum of the losses, computed in float64."""
        with jax.enable_x64(True):
            wide = self._wide
            pulled, _ = wide.pull(wide.params, wide.rest, images.astype(np.float64), *given)
            return pulled

    @cached_property
    def _wide(self) -> Network:
        """The same detector in float64; must be created while float64 is enabled."""
        settings, K = settings_of(self.model), self.model.num_classes
        detector = models.abstract_detector(settings, K, dtype=jnp.float64)
        state = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), self.state)
        return Network(self.model, nnx.split(detector)[0], state, self.options)

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


def flat_name(path: tuple[Any, ...]) -> str:
    """The dotted name of a path in a state."""
    return ".".join(map(str, path))
