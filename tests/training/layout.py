"""Called by a test, once a process of a layout: losses, scores and a continued run, as JSON.

The number of devices is fixed before JAX starts, so each layout needs processes of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from flax import nnx

from drkd_jax.data.pipeline import train_loader
from drkd_jax.models import faster_rcnn
from drkd_jax.models.rpn import Proposals
from drkd_jax.training import loop
from drkd_jax.training.evaluate import evaluate, predictor
from drkd_jax.training.loading import load_detector
from drkd_jax.training.processes import connect
from drkd_jax.training.setup import build_run
from drkd_jax.training.sharding import put_everywhere
from tests.training import tiny

STEPS = 5


def config(detector: str, parallel: str):
    """One canvas, so that one program serves; the last batch of an epoch is not full."""
    values = tiny.config(detector, distilled=detector == "retinanet", parallel=parallel)
    values["data"]["canvases"] = values["data"]["canvases"][:1]
    values["student"]["test"] = {"score": 0.0, "max_out": 20}  # an untrained one is sure of nothing
    return values


def steps(name: str, parallel: str) -> list[dict[str, float]]:
    """The values of the first steps."""
    detector, _, regions = name.partition(" ")
    own = faster_rcnn.propose
    if regions == "given":
        faster_rcnn.propose = given
    try:
        run = build_run(config(detector, parallel))
        loader = train_loader(
            run.train_source,
            run.pipeline,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        state, found = run.state, []
        for _ in range(STEPS):
            state, values = run.step(state, run.teacher_arrays, run.put(next(loader)))
            found.append(values.to_dict())
        loader.close()
        return found
    finally:
        faster_rcnn.propose = own


def given(logits, deltas, levels, sizes, **_):
    """Regions that no rounding can turn round: a fixed grid over each picture."""
    corners = np.stack(np.meshgrid(np.arange(5), np.arange(5)), -1).reshape(-1, 2) / 8
    grid = np.concatenate([corners, corners + 0.45], axis=1).astype(np.float32)
    boxes = grid * jnp.asarray(sizes)[:, None, jnp.array([1, 0, 1, 0])]
    every = jnp.ones(boxes.shape[:2])
    return Proposals(boxes=boxes, scores=every, valid=every > 0)


def detections(checkpoint: str) -> list[dict]:
    """What the checkpoint's detector finds in the validation pictures."""
    run = build_run(config("retinanet", "jit"))
    detector, _, _ = load_detector(checkpoint, "last")
    graph, state = nnx.split(detector)
    predict = predictor(graph, run.pixels, run.mesh)
    arrays = (put_everywhere(nnx.as_pure(state), run.mesh),)
    _, found = evaluate(predict, arrays, run.val_source, run.pipeline, run.eval, run.mesh)
    return found


def main(arguments: dict) -> None:
    flags.FLAGS.mark_as_parsed()
    logging.set_verbosity(logging.WARNING)
    if arguments["peers"]:
        connect(**arguments["peers"])
    result = {
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "steps": {job: steps(*job.split("|")) for job in arguments["jobs"]},
        "detections": detections(arguments["checkpoint"]),
    }
    # The copy of a run that another layout began.
    longer = config("retinanet", arguments["go_on"])
    longer["train"].update(steps=6, checkpoint_every=6)
    loop.train(longer, arguments["workdir"])
    Path(arguments["answer"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
