"""``python -m drkd_jax export``: exports a detector as its arrays or as a program."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from drkd_jax.cli.arguments import Parser, positive, refuse_same_file, two_numbers
from drkd_jax.cli.detector import Read, add_place, open_named, read_named, where
from drkd_jax.errors import UserError
from drkd_jax.export.onnx_program import need_packages, to_onnx
from drkd_jax.export.program import DTYPES, PLATFORMS, Form, about_program, check_form, to_stablehlo
from drkd_jax.fault_tolerance.writing import make_place, reason, write_bytes, write_json
from drkd_jax.weights.checksums import CHECKSUMS, checksums
from drkd_jax.weights.fetch.by_name import is_name
from drkd_jax.weights.ours import ABOUT_FILE, About, write_ours
from drkd_jax.words import counted

# The extension of each kind of file.
_ENDINGS = {"safetensors": ".safetensors", "stablehlo": ".stablehlo", "onnx": ".onnx"}
_OF_PROGRAMS = ("canvas", "batch", "pixels", "no_nms", "platforms", "size")


def main(argv: Sequence[str]) -> int:
    """Writes a detector: its arrays (safetensors, orbax), or a stand-alone program.

    Raises:
        UserError: wrong arguments, no checkpoint, or a place that cannot be written.
    """
    arguments = _parser().parse_args(list(argv))
    out, kind = Path(arguments.out), arguments.to
    ending = _ENDINGS.get(kind, "")
    if ending and out.suffix != ending:
        raise UserError(f"{out}: the name has to end in {ending}")
    if kind == "orbax" and out.exists():
        raise UserError(f"{out}: already exists; name another folder")
    if kind in ("stablehlo", "onnx"):
        return _write_program(arguments, out)
    for name in _OF_PROGRAMS:
        if getattr(arguments, name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} belongs to programs; --to={kind} writes arrays alone")
    refuse_same_file(where(arguments)[0], out)
    make_place(out)
    weights = open_named(arguments)
    arrays, about = weights.arrays, weights.about
    if kind == "safetensors":
        write_ours(out, arrays, about)
    else:
        _write_orbax(out, arrays, about)
    step = about.source.get("step")  # of a run alone
    of_step = "" if step is None else f" of step {step}"
    print(f"{len(arrays)} arrays{of_step}, written to {out}")
    return 0


def _write_orbax(folder: Path, arrays: Mapping[str, Any], about: About) -> None:
    """Writes an orbax folder `student`, by flat name, and `about.json`, with checksums, beside it.

    Raises:
        UserError: it cannot be written.
    """
    folder = folder.absolute()
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "student", dict(arrays))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be written ({reason(error)})") from error
    said = {**dataclasses.asdict(about), CHECKSUMS: checksums({"student": arrays})}
    write_json(folder / ABOUT_FILE, said, sort_keys=True)


def _parser() -> Parser:
    parser = Parser("export", "A detector for others: its arrays by our names, or a program.")
    add_place(parser)
    parser.add_argument(
        *("--to", "--format"),
        dest="to",
        required=True,
        choices=("orbax", "safetensors", "stablehlo", "onnx"),
        help="arrays in a folder or a file; a program that JAX, or an ONNX runtime, runs alone",
    )
    program = parser.add_argument_group("of a program (--to=stablehlo, --to=onnx)")
    program.add_argument(
        "--canvas", type=two_numbers, metavar="HxW", help="pixels; the first one of the training's"
    )
    program.add_argument(
        "--batch", type=positive, help="images of a call; any number (ONNX: 1) by default"
    )
    program.add_argument("--pixels", choices=DTYPES, help="what they come as; uint8 by default")
    program.add_argument(
        "--no-nms", action="store_true", help="every decoded box and its scores of all classes"
    )
    program.add_argument(
        "--platforms", type=_platforms, metavar="NAMES", help="of StableHLO; cpu,cuda by default"
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        help="NAME.safetensors, .stablehlo or .onnx, or a folder for orbax",
    )
    return parser


def _write_program(arguments: argparse.Namespace, out: Path) -> int:
    beside = out.with_name(out.name + ".json")
    make_place(out)
    make_place(beside)
    onnx = arguments.to == "onnx"
    if onnx:
        need_packages()
        if arguments.platforms:
            raise UserError("--platforms belongs to --to=stablehlo; ONNX runs wherever it is run")
    elif find_spec("flatbuffers") is None:
        raise UserError("jax.export needs flatbuffers to write a file: pip install flatbuffers")
    # ONNX runtimes have no bfloat16 convolutions on a CPU; the arrays are float32 in any case.
    read = read_named(arguments, "float32" if onnx else None)
    form = Form(
        canvas=arguments.canvas or read.pipeline.canvases[0],
        batch=arguments.batch or (1 if onnx else None),
        dtype=arguments.pixels or DTYPES[0],
        suppress=not arguments.no_nms,
        platforms=("onnx",) if onnx else arguments.platforms or Form.platforms,
    )
    check_form(form, read.detector.stride)
    write = to_onnx if onnx else to_stablehlo
    content = write(read.detector, read.pixels, form)
    write_bytes(out, content)
    write_json(beside, _about(read, form, where(arguments)[0]))
    canvas = "x".join(map(str, form.canvas))
    images = counted(form.batch, "image") if form.batch else "any number of images"
    print(
        f"{len(content) / 1e6:.1f} MB for {images} on {canvas} pixels, on "
        f"{', '.join(form.platforms)}, written to {out}; {beside.name} says what goes in and out"
    )
    return 0


def _about(read: Read, form: Form, source: str) -> dict[str, object]:
    return about_program(
        form,
        read.pixels,
        read.classes,
        read.pipeline,
        read.detector.settings,
        source if is_name(source) else Path(source).name,
        read.step,
    )


def _platforms(text: str) -> tuple[str, ...]:
    """Names from text like cpu,cuda."""
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in PLATFORMS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(PLATFORMS)}")
    return names
