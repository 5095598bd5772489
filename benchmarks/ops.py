"""NMS, RoIAlign, deformable convolution against torchvision's: times, ratios, differences.

    python benchmarks/ops.py [--torch-python /usr/bin/python3] [--batch 1] [--json FILE]

torchvision runs first, on the same inputs, in its own interpreter (`--torch-python`, by default
this one); without torchvision there, its column stays empty. A ratio is torchvision's time over
ours: above 1, ours is faster. Sizes are those of a two-stage detector in training: 2000 proposals
on each of five levels of an 800x1344 canvas, 512 regions of 7x7 bins from 256 channels; a
deformable convolution of ResNeXt-101-32x4d's C4, 512 channels in 32 groups.
`--backward` measures, instead of torchvision, the ways to differentiate RoIAlign.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drkd_jax.ops.deform_conv import deform_conv
from drkd_jax.ops.nms import nms
from drkd_jax.ops.roi_align import region_levels, roi_align

STRIDES = (4, 8, 16, 32)
BINS = 7
EVERY = 16  # one of so many regions is compared
THRESHOLDS = {"nms, 5 levels x 2000": 0.7, "nms, 2000 of 80 classes": 0.5}
SAMPLES = {"roi_align 2x2": 2, "roi_align adaptive": 0}
DEFORM = "deform_conv, 512 in 32 groups"


def random_boxes(
    random: np.random.Generator, shape: tuple[int, ...], canvas: tuple[int, int], largest: float
) -> np.ndarray:
    """Boxes like proposals: log-uniform sides and aspects, anywhere, clipped to the canvas."""
    side = np.exp(random.uniform(np.log(16), np.log(largest), shape))
    aspect = np.exp(random.uniform(np.log(1 / 3), np.log(3), shape) / 2)
    half = np.stack([side * aspect, side / aspect], axis=-1) / 2
    limit = np.asarray(canvas[::-1])
    centre = random.uniform(0, 1, (*shape, 2)) * limit
    corners = np.clip(centre - half, 0, limit), np.clip(centre + half, 0, limit)
    return np.concatenate(corners, axis=-1).astype(np.float32)


def crowd(
    random: np.random.Generator, shape: tuple[int, ...], canvas: tuple[int, int], objects: int
) -> np.ndarray:
    """Boxes like those of a network: many around each of a few objects."""
    centres = random_boxes(random, (shape[0], objects), canvas, 600)
    chosen = np.take_along_axis(
        centres, random.integers(0, objects, (*shape, 1)).reshape(shape[0], -1, 1), axis=1
    ).reshape(*shape, 4)
    sides = np.tile(chosen[..., 2:] - chosen[..., :2], 2)
    return (chosen + random.normal(0, 0.12, chosen.shape) * sides).astype(np.float32)


def inputs(arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    height, width = arguments.canvas
    B, C, R = arguments.batch, arguments.channels, arguments.regions
    made: dict[str, np.ndarray] = {}
    levels = np.repeat(np.arange(5), 2000)[None].repeat(B, 0)
    classes = random.integers(0, 80, (B, 2000))
    for case, groups in zip(THRESHOLDS, (levels, classes), strict=True):
        made[f"{case}_boxes"] = crowd(random, groups.shape, arguments.canvas, 60)
        made[f"{case}_scores"] = random.uniform(0, 1, groups.shape).astype(np.float32)
        made[f"{case}_groups"] = groups.astype(np.int32)
    for i, stride in enumerate(STRIDES):
        shape = B, -(-height // stride), -(-width // stride), C
        made[f"map{i}"] = random.standard_normal(shape, np.float32)
    shape = B, -(-height // 16), -(-width // 16)
    made["deform_map"] = random.standard_normal((*shape, 512), np.float32)
    made["deform_offsets"] = 2 * random.standard_normal((*shape, 18), np.float32)
    made["deform_kernel"] = random.standard_normal((3, 3, 16, 512), np.float32) / 12
    made["regions"] = random_boxes(random, (B, R), arguments.canvas, 600)
    made["cotangent"] = random.standard_normal((B * R, BINS, BINS, C), np.float32)
    return made


def torchvision_times(
    arguments: argparse.Namespace, made: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Runs the other side; empty if it cannot run."""
    settings = {
        "nms": THRESHOLDS,
        "roi_align": SAMPLES,
        "strides": STRIDES,
        "bins": BINS,
        "every": EVERY,
        "deform": DEFORM,
        "canvas": arguments.canvas,
        "dtype": arguments.dtype,
        "repeat": arguments.repeat,
        "threads": arguments.threads,
        "gpu": jax.default_backend() == "gpu",
    }
    with tempfile.TemporaryDirectory() as folder:
        source, sink = Path(folder, "in.npz"), Path(folder, "out.npz")
        np.savez(source, settings=json.dumps(settings), **made)
        script = Path(__file__).with_name("ops_torch.py")
        done = subprocess.run([arguments.torch_python, str(script), str(source), str(sink)])
        if done.returncode:
            print("torchvision did not run: its column stays empty")
            return {}, {}
        found = dict(np.load(sink))
    return json.loads(str(found.pop("about"))), found


def shortest(function: Callable[..., Any], arguments: tuple[Any, ...], repeat: int) -> float:
    """Milliseconds of the fastest call; the first one compiles."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def suppress(
    by_level: bool, threshold: float, boxes: jax.Array, scores: jax.Array, groups: jax.Array
) -> jax.Array:
    """Which boxes the NMS of this project's detectors keeps."""
    one = partial(nms, iou_threshold=threshold)
    valid = jnp.ones(scores.shape, bool)
    if not by_level:
        return jax.vmap(lambda b, s, v, g: one(b, s, v, g))(boxes, scores, valid, groups)
    B = len(boxes)
    split = [x.reshape(B, 5, -1, *x.shape[2:]) for x in (boxes, scores, valid)]
    return jax.vmap(jax.vmap(lambda b, s, v: one(b, s, v, None)))(*split).reshape(B, -1)


def pool(samples: int, maps: tuple[jax.Array, ...], boxes: jax.Array) -> jax.Array:
    levels = region_levels(boxes, 2, 5, convention="torchvision")
    return roi_align(maps, boxes, levels, STRIDES, BINS, samples, aligned=False)


def measure(
    arguments: argparse.Namespace, made: dict[str, np.ndarray]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    times: dict[str, float] = {}
    found: dict[str, np.ndarray] = {}
    for case, threshold in THRESHOLDS.items():
        given = tuple(jnp.asarray(made[f"{case}_{x}"]) for x in ("boxes", "scores", "groups"))
        run = jax.jit(partial(suppress, "levels" in case, threshold))
        times[case] = shortest(run, given, arguments.repeat)
        found[case] = np.asarray(run(*given))
    maps = tuple(jnp.asarray(made[f"map{i}"], arguments.dtype) for i in range(len(STRIDES)))
    boxes = jnp.asarray(made["regions"])
    cotangent = made["cotangent"].reshape(*boxes.shape[:2], BINS, BINS, -1)
    cotangent = jnp.asarray(cotangent, arguments.dtype)
    for case, samples in SAMPLES.items():
        forward = jax.jit(partial(pool, samples))
        times[f"{case} forward"] = shortest(forward, (maps, boxes), arguments.repeat)
        value = forward(maps, boxes).reshape(-1, *cotangent.shape[2:])
        found[case] = np.asarray(value[::EVERY], np.float32)

        @jax.jit
        def both(maps, boxes, cotangent, samples=samples):  # type: ignore[no-untyped-def]
            value, back = jax.vjp(lambda m: pool(samples, m, boxes), maps)
            return value, back(cotangent)[0]

        given = maps, boxes, cotangent
        times[f"{case} forward+backward"] = shortest(both, given, arguments.repeat)
        found[f"{case} gradient"] = np.asarray(both(*given)[1][1], np.float32)
    x, offsets, kernel = (
        jnp.asarray(made[f"deform_{name}"], dtype)
        for name, dtype in (
            ("map", arguments.dtype),
            ("offsets", "float32"),
            ("kernel", arguments.dtype),
        )
    )
    run = jax.jit(lambda *given: deform_conv(given[0], given[2], given[1]))
    pull = jax.jit(lambda *given: jax.vjp(run, *given)[1](x))
    times[f"{DEFORM} forward"] = shortest(run, (x, offsets, kernel), arguments.repeat)
    times[f"{DEFORM} forward+backward"] = shortest(pull, (x, offsets, kernel), arguments.repeat)
    found[DEFORM] = np.asarray(run(x, offsets, kernel), np.float32)
    found[f"{DEFORM} gradient"] = np.asarray(pull(x, offsets, kernel)[0], np.float32)
    plain = jax.jit(
        lambda x, kernel: jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=32,
        )
    )
    times["the same, not deformable, forward"] = shortest(plain, (x, kernel), arguments.repeat)
    return times, found


def compare_backwards(arguments: argparse.Namespace, made: dict[str, np.ndarray]) -> None:
    """RoIAlign's gradient by tiles against three backward passes of the gathered form, float32."""
    sys.path.insert(0, str(Path(__file__).parent))
    import gathered_roi_align

    maps = tuple(jnp.asarray(made[f"map{i}"]) for i in range(len(STRIDES)))
    boxes = jnp.asarray(made["regions"])
    cotangent = jnp.asarray(made["cotangent"].reshape(*boxes.shape[:2], BINS, BINS, -1))
    levels = region_levels(boxes, 2, 5, convention="torchvision")
    forms: dict[str, Callable[..., Any]] = {"tiles": lambda maps: pool(2, maps, boxes)}
    for name in ("autodiff", "in place", "sorted"):
        forms[f"gathered, {name}"] = partial(
            gathered_roi_align.roi_align,
            boxes=boxes,
            levels=levels,
            strides=STRIDES,
            bins=BINS,
            samples=2,
            backward=name,
        )
    wanted = None
    print(
        f"{'2x2 samples':24} {'forward ms':>11} {'backward ms':>12} {'MiB':>7}  largest difference"
    )
    for name, form in forms.items():
        # Linear in the maps, so the gradient takes only the backward pass.
        gradient = jax.jit(lambda maps, form=form: jax.vjp(form, maps)[1](cotangent)[0])
        forward = shortest(jax.jit(form), (maps,), arguments.repeat)
        took = shortest(gradient, (maps,), arguments.repeat)
        memory = gradient.lower(maps).compile().memory_analysis().temp_size_in_bytes / 2**20
        found = [np.asarray(x) for x in gradient(maps)]
        wanted = wanted or found
        off = max(float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True))
        print(f"{name:24} {forward:11.1f} {took:12.1f} {memory:7.0f}  {off:.1e}", flush=True)


def difference(case: str, a: np.ndarray, b: np.ndarray) -> str:
    if a.dtype == bool:
        return f"{int((a != b).sum())} of {int(b.sum())} kept boxes differ"
    return f"largest difference {np.abs(a - b).max():.1e} of {np.abs(b).max():.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--canvas", default="800x1344", help="height x width, pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--regions", type=int, default=512)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch's on the CPU")
    parser.add_argument("--torch-python", default=sys.executable, help="has torch, torchvision")
    parser.add_argument("--backward", action="store_true", help="compare RoIAlign's gradients")
    parser.add_argument("--json", help="write the times to this file as well")
    arguments = parser.parse_args()
    arguments.canvas = tuple(map(int, arguments.canvas.split("x")))
    made = inputs(arguments)
    if arguments.backward:
        compare_backwards(arguments, made)
        return
    about, theirs = torchvision_times(arguments, made)
    times, ours = measure(arguments, made)
    device = jax.devices()[0].device_kind
    print(
        f"jax {jax.__version__} on {device} ({os.cpu_count()} CPU cores), {arguments.dtype}, "
        f"batch {arguments.batch}; torchvision {about.get('torchvision', '-')}, "
        f"torch {about.get('torch', '-')} on {about.get('device', '-')}"
    )
    print(f"{'':48} {'ours ms':>9} {'torchvision ms':>15} {'ratio':>6}")
    rows = []
    for case, own in times.items():
        other = about.get("times", {}).get(case)
        row = {"case": case, "ours_ms": own, "torchvision_ms": other}
        shown = f"{'-':>15} {'-':>6}"
        if other is not None:
            row["ratio"] = other / own
            shown = f"{other:15.1f} {other / own:6.2f}"
        rows.append(row)
        print(f"{case:48} {own:9.1f} {shown}")
    for samples in ("forward", "forward+backward"):
        fixed, adaptive = (times[f"{case} {samples}"] for case in SAMPLES)
        print(f"adaptive over 2x2, {samples}: {adaptive / fixed:.2f}")
    for case in ours.keys() & theirs.keys():
        print(f"{case}: {difference(case, ours[case], theirs[case])}")
    if arguments.json:
        about.pop("times", None)
        record = {"device": device, "jax": jax.__version__, "torchvision": about, "rows": rows}
        Path(arguments.json).write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
