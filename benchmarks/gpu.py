"""Times full-size training steps on a GPU against torchvision and a PyTorch DRKD, in one run.

    python benchmarks/gpu.py --out=FOLDER [--torch-python=PYTHON] [--recipe=NAME,...] [--tiny]

Runs both of the paper's recipes, each plain and distilled, with random weights and noise for
images, so nothing has to be downloaded. First the PyTorch side runs (channels last, bfloat16 by
autocast, cuDNN's search) while ours builds; then our cases one after the other, each in its own
process with exclusive use of the GPU: median step, consecutive steps, memory, and a profile with
the kernels summed by part of the program, next to the counts of `h100_count.py`. FOLDER contains
gpu.json, gpu.md, and each case's program text, kernels and log. A failed case does not affect the
others; `--torch-python=-` keeps the PyTorch side of an earlier call. `--tiny`: everything at small
size, also on a CPU. Exit code 0: every case has its figures; 1: some failed, see the table; 2: a
fault in the flags.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gain.machine import commit  # noqa: E402
from benchmarks.gpu.table import markdown  # noqa: E402

RECIPES = ("retinanet_r50_fpn_2x_coco_drkd", "faster_rcnn_r50_fpn_2x_coco_drkd")
COUNTED = ROOT / "docs" / "h100" / "baseline.json"


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    environment = _environment()
    result: dict[str, Any] = {"commit": commit(), "date": time.strftime("%Y-%m-%d"), "cases": {}}
    cases = {name: _start(name, options, out, environment) for name in _names(options)}
    result["torch"] = _torch(options, out)
    result["ceilings"] = _ceilings(options, out, environment)
    failed = 0
    for name, process in cases.items():
        (out / name / "go").touch()
        try:
            code = process.wait(options.case_limit)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        failed += bool(code)
        file = out / name / "result.json"
        case = json.loads(file.read_text()) if file.is_file() else {}
        if code:
            tail = (out / name / "log.txt").read_text()[-1500:]
            case["failed"] = f"exit code {code}: {tail}"
            print(f"{name} failed:\n{tail}", file=sys.stderr, flush=True)
        result["cases"][name] = case
        (out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
    counted = json.loads(COUNTED.read_text()) if COUNTED.is_file() else None
    text = markdown(result, counted)
    (out / "gpu.md").write_text(text)
    print(text)
    return 1 if failed else 0


def _names(options: argparse.Namespace) -> list[str]:
    return [f"{recipe}-{kind}" for recipe in options.recipe for kind in options.kinds]


def _start(
    name: str, options: argparse.Namespace, out: Path, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    folder = out / name
    folder.mkdir(exist_ok=True)
    (folder / "go").unlink(missing_ok=True)
    recipe, kind = name.rsplit("-", 1)
    settings = {
        "name": name,
        "recipe": recipe,
        "plain": kind == "plain",
        "tiny": options.tiny,
        "precision": options.precision,
        "batch": options.batch,
        "classes": 80,
        "repeat": options.repeat,
        "warm": 3,
        "folder": str(folder),
        "go": str(folder / "go"),
    }
    (folder / "settings.json").write_text(json.dumps(settings, indent=1))
    with open(folder / "log.txt", "wb") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.gpu.case"),
                *(str(folder / "settings.json"), str(folder / "result.json")),
            ],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _torch(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Runs the PyTorch side; empty if it cannot run, or is not wanted."""
    sink = out / "torch.json"
    if options.torch_python != "-":
        sink.unlink(missing_ok=True)
        settings = {
            "canvas": [128, 160] if options.tiny else [800, 1344],
            "batch": 2 if options.tiny else options.batch,
            "boxes": _boxes(
                2 if options.tiny else options.batch, (128, 160) if options.tiny else (800, 1344)
            ),
            "precision": options.precision,
            "detectors": [recipe.split("_r50")[0] for recipe in options.recipe],
            "depth": 18 if options.tiny else 50,
            "teacher_layers": [1, 1, 1, 1] if options.tiny else [3, 4, 23, 3],
            "repeat": options.repeat,
            "warm": 3,
            "gpu": not options.tiny,
        }
        (out / "torch_settings.json").write_text(json.dumps(settings))
        script = Path(__file__).parent / "gpu" / "torch_side.py"
        command = [options.torch_python, str(script), str(out / "torch_settings.json"), str(sink)]
        try:
            fault = subprocess.run(command, timeout=options.torch_limit).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            fault = error
        if fault:
            print(f"PyTorch's side failed ({fault}): what it measured stays", file=sys.stderr)
    return json.loads(sink.read_text()) if sink.is_file() else {}


def _boxes(images: int, canvas: tuple[int, int]) -> list[list[list[float]]]:
    """Eight boxes per image, as many as on our side."""
    import numpy as np

    random, (height, width) = np.random.default_rng(0), canvas
    low = random.uniform(0, 0.5, (images, 8, 2))
    high = low + random.uniform(0.05, 0.5, low.shape)
    boxes: list[list[list[float]]] = (
        np.concatenate([low, high], -1) * (width, height, width, height)
    ).tolist()
    return boxes


def _ceilings(
    options: argparse.Namespace, out: Path, environment: dict[str, str]
) -> dict[str, Any]:
    sink = out / "ceilings.json"
    size = "256" if options.tiny else "8192"
    command = [sys.executable, "-m", "benchmarks.gpu.ceilings", str(sink), size]
    if options.torch_python != "-":  # else both are from an earlier call
        subprocess.run(command, cwd=ROOT, env=environment)
    return json.loads(sink.read_text()) if sink.is_file() else {}


def _environment() -> dict[str, str]:
    """The environment of the measuring processes."""
    environment = dict(os.environ)
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):
        environment["JAX_PLATFORMS"] = f"{platforms},cpu"  # for drawing the weights
    # Several processes share the GPU's memory; the functions that a kernel comes from, up to the
    # outermost, determine its part of the program.
    return environment | {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "60",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--torch-python", default=sys.executable, help="has torch, torchvision")
    parser.add_argument("--torch-limit", type=float, default=300.0, help="seconds for that side")
    parser.add_argument("--case-limit", type=float, default=600.0, help="seconds for each of ours")
    parser.add_argument("--recipe", type=lambda text: text.split(","), default=list(RECIPES))
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=["plain", "drkd"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--repeat", type=int, default=20, help="timed steps")
    parser.add_argument("--tiny", action="store_true", help="the flow at small size")
    return parser


if __name__ == "__main__":
    sys.exit(main())
