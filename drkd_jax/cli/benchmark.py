"""``python -m drkd_jax benchmark``: the cost of a recipe's training step on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from absl import flags

from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.writing import make_place, write_json
from drkd_jax.recipes.finding import define_recipe_flag
from drkd_jax.recipes.flag_faults import flag_fault
from drkd_jax.training.measure import Cost, measure
from drkd_jax.training.setup import Run, build_run, keep_programs

_BOXES = 8  # random boxes per image; COCO's average is 7.3
_HELP = """usage: python -m drkd_jax benchmark --config=RECIPE[:tiny] [--config.a.b=v]
  --config=RECIPE           a recipe's name, or a file as configs/NAME.py
  --random                  random weights and noise for images, instead of every file
  --classes=80              classes of the noise
  --steps=10                timed steps, after two that warm up
  --noparts                 the step as a whole only: one compilation instead of many
  --peak-tflops=X           the device's peak in the run's precision, 10^12 operations per second
  --json=FILE               the same figures, for programs
  --compilation-cache=DIR   keeps compiled programs for the next start"""


def main(argv: Sequence[str]) -> int:
    """Prints compile time, images per second, operations, memory, and the time of each part.

    Raises:
        UserError: wrong arguments, or a recipe that cannot be built.
    """
    if "--help" in argv or "-h" in argv:
        print(_HELP)
        return 0
    options = _options(argv)
    if options["json"]:
        make_place(options["json"], "--json")
    if options["compilation-cache"]:
        keep_programs(options["compilation-cache"])
    config = options["config"].to_dict()
    with (
        without_files(config, options["classes"])
        if options["random"]
        else (contextlib.nullcontext(config)) as config
    ):
        run = build_run(config)
        cost = measure(run, steps=options["steps"], parts=options["parts"])
    figures = _figures(run, cost, options["peak-tflops"])
    print("\n".join(_lines(run, cost, figures)), flush=True)
    if options["json"]:
        write_json(Path(options["json"]), figures)
    return 0


def _options(argv: Sequence[str]) -> dict[str, Any]:
    own = flags.FlagValues()
    define_recipe_flag("", own, argv)
    flags.DEFINE_bool("random", False, "", flag_values=own)
    flags.DEFINE_integer("classes", 80, "", lower_bound=1, flag_values=own)
    flags.DEFINE_integer("steps", 10, "", lower_bound=1, flag_values=own)
    flags.DEFINE_bool("parts", True, "", flag_values=own)
    flags.DEFINE_float("peak-tflops", 0.0, "", lower_bound=0.0, flag_values=own)
    flags.DEFINE_string("json", "", "", flag_values=own)
    flags.DEFINE_string("compilation-cache", "", "", flag_values=own)
    try:
        rest = own(["benchmark", *argv])
        if len(rest) > 1:
            raise UserError(f"unknown: {' '.join(rest[1:])}; every argument is --name=value")
        options: dict[str, Any] = {name: own[name].value for name in own}
        if not options["config"]:
            raise UserError("--config is missing (see python -m drkd_jax benchmark --help)")
    except UserError:
        raise
    except Exception as error:
        fault = flag_fault(error, argv)
        raise fault if isinstance(fault, UserError) else UserError(_words(fault)) from error
    return options


def _words(fault: Exception) -> str:
    words = " ".join(str(fault).split())
    return words if isinstance(fault, flags.Error) else f"{type(fault).__name__}: {words}"


@contextlib.contextmanager
def without_files(config: dict[str, Any], classes: int) -> Iterator[dict[str, Any]]:
    """The config without files: random weights, and noise images of the first canvas's shape."""
    config = {**config, "data": {**config["data"]}, "student": {**config["student"]}}
    config["student"]["init"] = ""
    if config.get("teacher") is not None:
        teacher = {**config["teacher"], "checkpoint": "", "init": "random"}
        if not teacher.get("detector"):
            teacher |= _model_by_name(config["teacher"]["checkpoint"], config["student"])
        config["teacher"] = teacher
    config["data"]["canvases"] = config["data"]["canvases"][:1]
    with tempfile.TemporaryDirectory() as folder:
        height, width = config["data"]["canvases"][0]
        spec = _write_noise(
            Path(folder),
            count=config["train"]["batch_size"],
            classes=classes,
            # Fills the canvas as most photographs do, with 4:3 or 3:4.
            shape=(480, 640) if width >= height else (640, 480),
            seed=config["seed"],
        )
        config["data"]["train"] = config["data"]["val"] = spec
        yield config


def _write_noise(
    folder: Path, *, count: int, classes: int, shape: tuple[int, int], seed: int = 0
) -> str:
    """Writes a COCO set of noise into a folder: images (height, width) and boxes.

    Returns:
        The source's spec.
    """
    rng = np.random.default_rng(seed)
    height, width = shape
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        # Coarse noise, so that its JPEG has the size of a photograph's.
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        name = f"{number:06d}.jpg"
        cv2.imwrite(str(folder / name), cv2.resize(coarse, (width, height)))
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for _ in range(_BOXES):
            w, h = rng.uniform(0.05, 0.5, 2) * (width, height)
            x, y = rng.uniform(0, 1, 2) * (width - w, height - h)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(rng.integers(1, classes + 1)),
                    "bbox": [float(x), float(y), float(w), float(h)],
                    "area": float(w * h),
                    "iscrowd": 0,
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, classes + 1)],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return f"coco:{folder}:{folder / 'instances.json'}"


def _model_by_name(checkpoint: str, student: dict[str, Any]) -> dict[str, Any]:
    """The model of a teacher whose file is missing: the backbone is found from its name.

    Detector and pyramid are the student's; a step does not use the teacher's heads.

    Raises:
        UserError: the name does not contain a backbone.

    Source: open-mmlab/mmdetection, model zoo: r101, x101_64x4d, dconv_c3-c5 (deformable).
    """
    name = Path(checkpoint).stem
    found = re.search(r"_(r|x)(50|101|152)(?:_(\d+)x(\d+)d)?(?=_|$)", name)
    if found is None:
        raise UserError(
            f"config.teacher.checkpoint = '{checkpoint}': --random needs the teacher's model, and "
            "neither the config nor a name as mmdetection gives them (..._x101_64x4d_...) tells it"
        )
    _, depth, groups, group_width = found.groups()
    dcn = {"_mdconv": "v2", "_dconv": "v1"}
    backbone = {
        "depth": int(depth),
        "groups": int(groups or 1),
        "group_width": int(group_width or 64),
        "dcn": next((kind for word, kind in dcn.items() if word in name), ""),
    }
    same = {key: student.get(key) for key in ("detector", "channels", "extra")}
    return same | {"backbone": backbone}


def _figures(run: Run, cost: Cost, peak_tflops: float) -> dict[str, Any]:
    device = jax.local_devices()[0]
    per_second = cost.flops / cost.step_seconds
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": run.mesh.size,
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "precision": run.train.precision,
        **dataclasses.asdict(cost),
        "tflops_per_second": per_second / 1e12,
        "peak_tflops": peak_tflops or None,
        "share_of_peak": per_second / (peak_tflops * 1e12) if peak_tflops else None,
    }


def _lines(run: Run, cost: Cost, figures: dict[str, Any]) -> list[str]:
    height, width = cost.canvas
    shortest, longest = cost.step_range
    share = figures["share_of_peak"]
    peak = "" if share is None else f", {share:.1%} of the peak of {figures['peak_tflops']:g}"
    lines = [
        f"device      {figures['devices']} x {figures['device']}, jax {figures['jax']}",
        f"run         {cost.batch_size} images per step on canvases of {height} x {width}, "
        f"{figures['precision']}, {run.student_origin}",
        f"compile     {cost.compile_seconds:.1f} s, and {cost.trace_seconds:.1f} s of tracing",
        f"step        {cost.step_seconds * 1e3:.1f} ms ({shortest * 1e3:.1f} to "
        f"{longest * 1e3:.1f}), {cost.images_per_second:.2f} images/s",
        f"operations  {cost.flops / 1e9:.2f} GFLOP per step and device as compiled "
        f"({cost.flops_written / 1e9:.2f} as written), "
        f"{figures['tflops_per_second']:.3g} TFLOP/s{peak}",
        "memory      "
        + ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in cost.memory.items()),
    ]
    if run.teacher is not None:
        count = run.teacher.num_parameters / 1e6
        lines.insert(2, f"teacher     {count:.1f} M parameters, {run.teacher.origin}")
    if cost.parts:
        lines.append("parts       (by difference: backward, the terms of the distillation, update)")
        lines += [
            f"  {name:20s} {seconds * 1e3:9.1f} ms  {seconds / cost.step_seconds:6.1%}"
            for name, seconds in cost.parts.items()
        ]
    return lines
