"""Times one training step of a recipe in its own process: as a whole, and by its parts.

python -m benchmarks.gpu.case SETTINGS.json RESULT.json
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.gpu.kernels import by_part, kernels_of
from benchmarks.h100.steps import read_config
from drkd_jax.cli.benchmark import without_files
from drkd_jax.data.pipeline import train_loader
from drkd_jax.models.filling import as_tuples
from drkd_jax.recipes.finding import load_recipe
from drkd_jax.training.setup import build_run

TRACED = 3  # steps under the profiler


def main(source: str, sink: str) -> None:
    settings = json.loads(Path(source).read_text())
    result: dict[str, Any] = {"name": settings["name"], "seconds": {}}
    marks = time.perf_counter()

    def mark(what: str) -> None:
        nonlocal marks
        now = time.perf_counter()
        result["seconds"][what] = round(now - marks, 2)
        marks = now
        Path(sink).write_text(json.dumps(result, indent=1))
        print(f"{settings['name']}: {what} {result['seconds'][what]:.1f} s", flush=True)

    # Weights are drawn on the CPU, where compiling many small draws is quick.
    cpu = jax.local_devices(backend="cpu")[0]
    with (
        jax.default_device(cpu),
        without_files(_config(settings), settings["classes"]) as config,
    ):
        run = build_run(config)
        loader = train_loader(run.train_source, run.pipeline)
        batch = next(loader)
        loader.close()
    mark("build")
    batch = run.put(batch)
    lowered = run.step.lower(run.state, run.teacher_arrays, batch)  # type: ignore[attr-defined]
    mark("trace")
    while not Path(settings["go"]).exists():  # only one process may use the GPU
        time.sleep(0.05)
    mark("wait")
    compiled = lowered.compile()
    mark("compile")
    state, times = run.state, []
    for _ in range(settings["warm"] + settings["repeat"]):
        start = time.perf_counter()
        state, values = compiled(state, run.teacher_arrays, batch)
        jax.block_until_ready(values)
        times.append(1e3 * (time.perf_counter() - start))
    times = times[settings["warm"] :]
    # As in training, the host does not wait for the GPU: measures the rate, not the latency.
    start = time.perf_counter()
    for _ in range(settings["repeat"]):
        state, values = compiled(state, run.teacher_arrays, batch)
    jax.block_until_ready(values)
    in_a_row = 1e3 * (time.perf_counter() - start) / settings["repeat"]
    stats = jax.local_devices()[0].memory_stats() or {}
    result |= {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "batch": list(batch.images.shape),
        "precision": run.train.precision,
        "ms": statistics.median(times),
        "least_ms": min(times),
        "all_ms": times,
        "in_a_row_ms": in_a_row,
        "peak_gb": stats.get("peak_bytes_in_use", 0) / 1e9,
        "temporary_gb": compiled.memory_analysis().temp_size_in_bytes / 1e9,
        "loss": values.to_dict()["total"],
    }
    mark("run")
    folder = Path(settings["folder"]) / "trace"
    jax.profiler.start_trace(str(folder))
    for _ in range(TRACED):
        state, values = compiled(state, run.teacher_arrays, batch)
    jax.block_until_ready(values)
    jax.profiler.stop_trace()
    mark("profile")
    text = compiled.as_text()
    with gzip.open(Path(settings["folder"], "step.hlo.gz"), "wt") as file:
        file.write(text)
    kernels = kernels_of(folder)
    with gzip.open(Path(settings["folder"], "kernels.json.gz"), "wt") as file:
        json.dump([dataclasses.asdict(kernel) for kernel in kernels], file)
    result |= by_part(text, kernels, TRACED)
    mark("read the profile")


def _config(settings: dict[str, Any]) -> dict[str, Any]:
    if settings["tiny"]:
        config: dict[str, Any] = as_tuples(load_recipe(settings["recipe"] + ":tiny").to_dict())
        if settings["plain"]:
            config |= {"teacher": None, "distill": None}
        return config
    config = read_config(
        settings["recipe"],
        plain=settings["plain"],
        precision=settings["precision"],
        batch_size=settings["batch"],
    )
    for key, value in settings.get("set", {}).items():
        *path, last = key.split(".")
        place = config
        for part in path:
            place = place[part]
        place[last] = value
    return config


if __name__ == "__main__":
    main(*sys.argv[1:])
