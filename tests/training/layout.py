"""Called by a test, once per process of a layout: losses, scores and a continued run, as JSON.

The number of devices is fixed before JAX starts, so each layout needs its own processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from flax import nnx

from drkd_jax.data.pipeline import train_loader
from drkd_jax.fault_tolerance.processes import connect
from drkd_jax.models import faster_rcnn
from drkd_jax.models.rpn import Proposals
from drkd_jax.step.settings import train_settings
from drkd_jax.step.sharding import put_everywhere
from drkd_jax.training import loop
from drkd_jax.training.evaluate import evaluate, predictor
from drkd_jax.training.setup import Run, build_run
from drkd_jax.weights.opening import load
from tests.training import tiny

STEPS = 5
BEGUN, WHOLE = 3, 6  # steps of a run when another layout continues it, and at its end


def config(detector: str, parallel: str):
    """A config with one canvas, so one program; the last batch of an epoch is not full."""
    values = tiny.config(detector, distilled=detector == "retinanet", parallel=parallel)
    values["data"]["canvases"] = values["data"]["canvases"][:1]
    values["student"]["test"] = {"score": 0.0, "max_out": 20}  # untrained: only low scores
    return values


def steps(name: str, parallel: str, run: Run | None = None) -> list[dict[str, float]]:
    """The values of the first steps, of a given run or a new one."""
    detector, _, regions = name.partition(" ")
    own = faster_rcnn.propose
    if regions == "given":
        faster_rcnn.propose = given
    try:
        run = run or build_run(config(detector, parallel))
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
    """Regions that do not depend on rounding: a fixed grid over each image."""
    corners = np.stack(np.meshgrid(np.arange(5), np.arange(5)), -1).reshape(-1, 2) / 8
    grid = np.concatenate([corners, corners + 0.45], axis=1).astype(np.float32)
    boxes = grid * jnp.asarray(sizes)[:, None, jnp.array([1, 0, 1, 0])]
    every = jnp.ones(boxes.shape[:2])
    return Proposals(boxes=boxes, scores=every, valid=every > 0)


def detections(checkpoint: str, run: Run) -> list[dict]:
    """The detections of the checkpoint's detector in the validation images."""
    detector = load(checkpoint, which="last").detector()
    graph, state = nnx.split(detector)
    predict = predictor(graph, run.pixels, run.mesh)
    arrays = (put_everywhere(nnx.as_pure(state), run.mesh),)
    _, found = evaluate(predict, arrays, run.val_source, run.pipeline, run.eval, run.mesh)
    return found


def go_on(steps: int, parallel: str, workdir: str) -> None:
    """Trains up to a step, from a checkpoint of RetinaNet if there is one."""
    longer = config("retinanet", parallel)
    longer["train"].update(steps=steps, checkpoint_every=BEGUN)
    loop.train(longer, workdir)


@contextlib.contextmanager
def one_program(parallel: str) -> Iterator[Callable[[], Run]]:
    """Runs of RetinaNet of any length with the programs of one run, compiled once."""
    run = build_run(config("retinanet", parallel))
    state = jax.device_get(run.state)

    def build(values: dict) -> Run:
        settings = train_settings(values["train"])
        fresh = put_everywhere(state, run.mesh)
        return dataclasses.replace(
            run, config=values, train=settings, steps=settings.steps, state=fresh
        )

    with mock.patch.object(loop, "build_run", build):
        yield lambda: dataclasses.replace(run, state=put_everywhere(state, run.mesh))


def main(arguments: dict) -> None:
    flags.FLAGS.mark_as_parsed()
    logging.set_verbosity(logging.WARNING)
    if arguments["peers"]:
        connect(**arguments["peers"])
    parallel = arguments["go_on"]
    with one_program(parallel) as run:
        if arguments["begins"]:
            go_on(BEGUN, parallel, arguments["checkpoint"])
            shutil.copytree(arguments["checkpoint"], arguments["workdir"])
        result = {
            "devices": jax.device_count(),
            "processes": jax.process_count(),
            "steps": {
                job: steps(*job.split("|"), run() if job == f"retinanet|{parallel}" else None)
                for job in arguments["jobs"]
            },
            "detections": detections(arguments["checkpoint"], run()),
        }
        go_on(WHOLE, parallel, arguments["workdir"])  # a run that one device began
    Path(arguments["answer"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
