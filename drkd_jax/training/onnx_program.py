"""A RetinaNet as an ONNX file: the network by jax2onnx, the suppression by ONNX's own operator.

Letters: B pictures, M candidates of a picture, K classes of the head, N detections.

This package's suppression would run in an ONNX runtime as a loop of single steps;
NonMaxSuppression is one call with the same rule: an overlap strictly above the threshold, the lower
row first among equal scores. Two-stage detectors suppress before their second stage and read
regions by a loop of their own; they have no ONNX form here.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from flax import nnx

from drkd_jax.errors import UserError
from drkd_jax.models.dense import sizable
from drkd_jax.models.retinanet import RetinaNet
from drkd_jax.ops.nms import at_most
from drkd_jax.ops.platform import tracing_for
from drkd_jax.training.pixels import Pixels
from drkd_jax.training.program import Form, program

_OUTPUTS = ("boxes", "scores", "labels", "valid")
_ALL = ("boxes", "scores", "valid")


def need_packages() -> None:
    """Refuses to begin without the packages that convert.

    Raises:
        UserError: one is missing; names the extra that brings it.
    """
    for package in ("jax2onnx", "onnx"):
        if find_spec(package) is None:
            raise UserError(
                f"--to=onnx needs {package}: pip install 'drkd-jax[onnx]' (or pip install "
                "'.[onnx]' in a checkout)"
            )


def check_onnx(detector: Any, suppress: bool) -> None:
    """Refuses a detector that has no ONNX form.

    Args:
        detector: trained.
        suppress: whether the detections are chosen inside.

    Raises:
        UserError: says what takes it.
    """
    if not isinstance(detector, RetinaNet):
        raise UserError("--to=onnx takes a RetinaNet; --to=stablehlo takes every detector")
    if suppress and detector.class_ids != tuple(range(detector.head_classes)):
        raise UserError(
            "--to=onnx: the head has classes that the data has not, and they are dropped after "
            "the suppression; add --no-nms, or use --to=stablehlo"
        )


def to_onnx(detector: RetinaNet, pixels: Pixels, form: Form) -> bytes:
    """The bytes of an ONNX model of a RetinaNet.

    Inputs and outputs have the names, shapes and dtypes of the StableHLO program (`program`).

    Args:
        detector: trained; see `check_onnx`.
        pixels: the network's input; the normalisation is part of the model.
        form: what is fixed; its batch is a number.

    Returns:
        A serialized `onnx.ModelProto`.
    """
    if form.suppress:
        graph, state = nnx.split(detector)
        arrays = nnx.as_pure(state)
    else:
        run, arrays = program(detector, pixels, suppress=False)
    arrays = jax.tree.map(np.asarray, arrays)

    def candidates(images: Any, sizes: Any) -> tuple[Any, ...]:
        if not form.suppress:
            return tuple(run(arrays, images, sizes)[name] for name in _ALL)
        module = nnx.merge(graph, arrays, copy=True)
        found = module.candidates(module.features(pixels.normalise(images, sizes)), sizes)
        return _by_class(module, *found)

    assert form.batch is not None
    inputs = [
        jax.ShapeDtypeStruct((form.batch, *form.canvas, 3), jnp.dtype(form.dtype)),
        jax.ShapeDtypeStruct((form.batch, 2), jnp.int32),
    ]
    # Traced here, so that the converter meets plain operations and none of the Flax calls that it
    # replaces by its own.
    with tracing_for("onnx"):
        traced = jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(candidates)(*inputs))
    with _quiet():
        import jax2onnx

        model = jax2onnx.to_onnx(traced, inputs=inputs, model_name="detector", opset=21)
    _number_rows(model)
    middle = ("candidate_boxes", "candidate_scores", "candidate_labels", "scores_by_class")
    _rename(model, ("images", "sizes"), middle if form.suppress else _ALL)
    if form.suppress:
        _append_suppression(model, detector, form.batch)
    return bytes(model.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what the converter prints and logs of its own parts; errors are raised still."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _by_class(module: RetinaNet, boxes: Any, scores: Any, labels: Any) -> tuple[Any, ...]:
    """Candidates with their scores as NonMaxSuppression wants them: ``[B, K, M]``, -1 elsewhere."""
    counts = sizable(boxes, module.convention.dense_min_side)
    classes = jnp.arange(module.head_classes, dtype=jnp.int32)[:, None]
    labels = labels.astype(jnp.int32)
    own = (labels[:, None] == classes) & counts[:, None]
    return boxes, scores, labels, jnp.where(own, scores[:, None], -1.0)


def _rename(model: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """Gives a model's inputs and outputs names, in their order."""
    new = {v.name: name for v, name in zip(model.graph.input, inputs, strict=True)}
    new |= {v.name: name for v, name in zip(model.graph.output, outputs, strict=True)}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.name = new.get(value.name, value.name)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]


def _number_rows(model: Any) -> None:
    """Makes the rows of every TopK the int32 that they were traced as.

    jax2onnx 0.12 hands on ONNX's int64, and the arithmetic after it meets two types.
    """
    from onnx import TensorProto, helper

    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type == "TopK":
            rows, wide = node.output[1], f"{node.output[1]}/wide"
            node.output[1] = wide
            nodes.append(helper.make_node("Cast", [wide], [rows], to=TensorProto.INT32))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]  # types that are inferred again


def _append_suppression(model: Any, detector: RetinaNet, batch: int) -> None:
    """Ends a model of candidates with what `best_detections` does, in ONNX's operators."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    shape = model.graph.output[0].type.tensor_type.shape.dim
    M, test = shape[1].dim_value, detector.settings.test
    N = min(test.max_out, M)
    constants = {
        "m": np.array([M], np.int64),
        "n": np.array([N], np.int64),
        "iou": np.array([at_most(test.nms, np.float32)], np.float32),
        "least": np.array([at_most(test.score, np.float32)], np.float32),
        "columns": np.array([0, 2], np.int64),
        "flags": np.zeros((batch, M), np.float32),
        "one": np.array(1.0, np.float32),
        "none": np.array(-1.0, np.float32),
        "zero": np.array(0.0, np.float32),
        "first": np.array(0, np.int64),
        "last": np.array([2], np.int64),
        "corners": np.array([batch, N, 4], np.int64),
    }
    own = {name: f"suppression/{name}" for name in constants}
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, own[name]))

    def add(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        names = [own.get(name, name) for name in inputs]
        model.graph.node.append(helper.make_node(kind, names, outputs, **attributes))

    add(
        "NonMaxSuppression",
        ["candidate_boxes", "scores_by_class", "m", "iou", "least"],
        ["selected"],
    )
    add("Gather", ["selected", "columns"], ["kept_rows"], axis=1)
    add("Shape", ["selected"], ["number"], end=1)
    add("Expand", ["one", "number"], ["ones"])
    add("ScatterND", ["flags", "kept_rows", "ones"], ["kept"])
    add("Greater", ["kept", "zero"], ["is_kept"])
    add("Where", ["is_kept", "candidate_scores", "none"], ["ranked"])
    add("TopK", ["ranked", "n"], ["best", "best_rows"], axis=1)
    add("Greater", ["best", "none"], ["valid"])
    add("Where", ["valid", "best", "zero"], ["scores"])
    add("Where", ["valid", "best_rows", "first"], ["rows"])
    add("GatherElements", ["candidate_labels", "rows"], ["labels"], axis=1)
    add("Unsqueeze", ["rows", "last"], ["rows_wide"])
    add("Expand", ["rows_wide", "corners"], ["rows_of_corners"])
    add("GatherElements", ["candidate_boxes", "rows_of_corners"], ["boxes"], axis=1)
    types = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT32, TensorProto.BOOL)
    del model.graph.output[:]
    for name, dtype in zip(_OUTPUTS, types, strict=True):
        dims = [batch, N, 4] if name == "boxes" else [batch, N]
        model.graph.output.append(helper.make_tensor_value_info(name, dtype, dims))
    onnx.checker.check_model(model)
