"""``python -m drkd_jax convert``: other libraries' weights to ours, and ours to theirs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drkd_jax.cli.arguments import Parser, refuse_same_file
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.writing import make_place, write_json
from drkd_jax.models.build import fill_settings
from drkd_jax.models.conventions import conventions
from drkd_jax.models.filling import as_tuples
from drkd_jax.models.norm import group_count
from drkd_jax.weights.libraries.checkpoint_spec import UNUSED
from drkd_jax.weights.libraries.key_report import give
from drkd_jax.weights.libraries.understanding import LIBRARIES, library_table
from drkd_jax.weights.opening import load
from drkd_jax.weights.ours import About, write_ours, write_safetensors

# Settings of a detector in which a config of the other library can differ from its defaults.
_TOLD = (
    *("channels", "min_level", "max_level", "extra", "extra_relu", "head_convs", "head_norm"),
    *("rpn_convs", "roi_convs", "roi_fcs", "fc", "class_agnostic"),
    *("anchors", "delta_stds", "roi_stds", "proposals", "test"),
)
_OF_REGIONS = ("roi_sampling", "roi_aligned", "roi_max_level")  # None or 0: the convention's
_SHOWN = 12  # classes in a line
_SIZE = (800, 1333)  # pixels of an image's shorter side, and of the longer one at most, in both


def main(argv: Sequence[str]) -> int:
    """Converts one file and prints how its keys were used.

    Raises:
        UserError: wrong arguments, a file that cannot be read or would run code, an unsupported
            model, or keys that are missing, left over or of other shapes.
    """
    parser = Parser("convert", "Weights of torchvision and mmdetection to ours, and back.")
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument(
        "--from", dest="source", choices=LIBRARIES, help="FILE is this library's"
    )
    direction.add_argument(
        "--to", dest="target", choices=LIBRARIES, help="OUT is to be this library's"
    )
    parser.add_argument("file", metavar="FILE", help="weights; with --to also a work folder")
    parser.add_argument("out", metavar="OUT", help="file to write, NAME.safetensors")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting that the file does not show, as backbone.eps=0",
    )
    parser.add_argument("--json", metavar="FILE", help="where the report of every key goes")
    arguments = parser.parse_args(list(argv))
    out = Path(arguments.out)
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: the name has to end in .safetensors")
    refuse_same_file(arguments.file, out)
    make_place(out)
    if arguments.json:
        refuse_same_file(arguments.file, arguments.json, "--json")
        make_place(arguments.json, "--json")
    if arguments.target:
        if arguments.set or arguments.json:
            raise UserError("--set and --json belong to --from")
        return _to_theirs(arguments.file, arguments.target, out)
    weights = load(arguments.file, parse_settings(arguments.set), arguments.source)
    print("\n".join(weights.lines), flush=True)
    write_ours(out, weights.arrays, weights.about)
    if arguments.json:
        report = weights.report.as_json() if weights.report else {}
        write_json(Path(arguments.json), report)
    print(f"written to {out}")
    return 0


def parse_settings(items: Sequence[str]) -> dict[str, Any]:
    """Settings as nested values, from items like backbone.eps=0; values are JSON or text.

    Raises:
        UserError: an item has no "=".
    """
    nested: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise UserError(f"--set={item}: it is KEY=VALUE")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        *path, last = key.split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise UserError(f"--set={item}: {part} is a value already")
        place[last] = value
    return nested


def _to_theirs(file: str, library: str, out: Path) -> int:
    weights = load(file)
    arrays, about = weights.arrays, weights.about
    convention = about.settings.get("convention", "mmdet")
    if about.part == "detector" and convention.split("-")[0] != library:
        raise UserError(
            f"{file}: computes by the conventions of {convention}; under the names of {library} it "
            "would be another detector"
        )
    table = library_table(library, arrays, prefixed=about.part != "backbone")
    theirs = give(arrays, table)
    metadata = {"format": "pt", "classes": json.dumps(_names_of_outputs(about))}
    write_safetensors(out, theirs, metadata)
    print(f"{len(theirs)} arrays under the names of {library}, written to {out}")
    if convention.split("-")[0] == library != convention:
        print(f"  it computes by the conventions of {convention}, not by those of {library}")
    told = [*_not_in_file(about.settings, about.num_classes), *_labels(about)]
    for line in [*told, *_images(about.data, library)]:
        print(f"  {line}")
    return 0


def _outputs(about: About) -> tuple[int, tuple[int, ...]]:
    """The number of a head's outputs without the background, and the output of each class."""
    ids = about.settings.get("class_ids") or range(about.num_classes)
    return about.settings.get("head_classes") or about.num_classes, tuple(ids)


def _names_of_outputs(about: About) -> list[str]:
    """A name for each output of the head, `UNUSED` if it is not a class; [] if unknown."""
    outputs, ids = _outputs(about)
    if not about.categories:
        return []
    names = dict(zip(ids, (name for _, name in about.categories), strict=True))
    kind = about.settings.get("convention"), about.settings["detector"]
    names.setdefault(0, "__background__" if kind == ("torchvision", "retinanet") else UNUSED)
    return [names.get(number, UNUSED) for number in range(outputs)]


def _labels(about: About) -> list[str]:
    """A message about the class of each of the other library's labels, if not in order."""
    outputs, ids = _outputs(about)
    if ids == tuple(range(outputs)):
        return []
    labels = [number + _counts_background(about.settings) for number in ids]
    if not about.categories:
        return [f"its classes are the labels {', '.join(map(str, labels))} there, in this order"]
    named = [f"{n} {name}" for n, (_, name) in zip(labels, about.categories, strict=True)]
    rest = len(named) - _SHOWN
    more = f" and {rest} others, all in order under `classes` in the file" if rest > 0 else ""
    return [f"its classes' labels there are {', '.join(named[:_SHOWN])}{more}"]


def _counts_background(settings: Mapping[str, Any]) -> bool:
    """Whether the library's own number of classes includes the background, as label 0."""
    return (settings.get("convention"), settings.get("detector")) == ("torchvision", "faster_rcnn")


def _images(data: Mapping[str, Any], library: str) -> list[str]:
    """The image settings that the other library needs, if they are known."""
    lines = []
    usual = conventions(library).pixels
    for key in ("mean", "std", "channels"):
        value, theirs = (as_tuples(v) for v in (data.get(key), getattr(usual, key)))
        if value not in (None, theirs):
            unit = "" if key == "channels" else " (of colours from 0 to 255)"
            lines.append(f"its images' {key} is {value}, not {theirs}{unit}")
    rule = data.get("resize", usual.resize)
    if rule not in (usual.resize, "stretch"):
        lines.append(f"its images are resized by the rule of {rule}, not of {usual.resize}")
    size = data.get("shorter", _SIZE[0]), data.get("longer", _SIZE[1])
    if rule == "stretch":
        lines.append(f"its images are stretched to {size[0]} pixels of height, {size[1]} of width")
    elif size != _SIZE:
        lines.append(
            f"its images' shorter side is {size[0]} pixels, the longer one {size[1]} at most, "
            f"not {_SIZE[0]} and {_SIZE[1]}"
        )
    return lines


def _not_in_file(settings: Mapping[str, Any], num_classes: int) -> list[str]:
    """The network settings that the other library needs, since no array shows them."""
    backbone = settings.get("backbone") or {}
    outputs = settings.get("head_classes") or num_classes
    lines = []
    if outputs:
        lines.append(f"its num_classes is {outputs + _counts_background(settings)} there")
    if backbone.get("eps", 1e-5) != 1e-5:
        lines.append(f"its batch norms need an eps of {backbone['eps']}")
    if backbone.get("width", 64) != 64:
        lines.append(f"its backbone is {backbone['width']} wide, not 64")
    if backbone.get("norm") == "gn":
        groups = group_count(backbone.get("width", 64))
        lines.append(f"its backbone has group norms, of {groups} groups at its narrowest")
    if backbone.get("style", "pytorch") != "pytorch":
        lines.append(f"its backbone's style is {backbone['style']}")
    if backbone.get("pool", "padded") != "padded":
        lines.append(f"its stem's pool is {backbone['pool']}")
    if settings.get("detector"):  # anchors and deltas: how outputs become boxes
        given = {key: settings[key] for key in ("detector", "convention") if key in settings}
        own, usual = (fill_settings(values)[1] for values in (settings, given))
        for key in _TOLD:
            lines += _other(key, getattr(own, key, None), getattr(usual, key, None))
        rule = conventions(own.convention)
        for key in _OF_REGIONS:
            value, theirs = getattr(own, key, None), getattr(rule, key)
            open_ = value is None or (key == "roi_max_level" and not value)
            lines += _other(key, theirs if open_ else value, theirs)
        if settings.get("roi_convs"):
            lines.append("norms of its pyramid and regions, if it had any, are in the convolutions")
    return lines


def _other(key: str, own: Any, usual: Any) -> list[str]:
    """Lines about values that differ from the usual ones."""
    if not dataclasses.is_dataclass(own):
        shown = [value if value != "" else "none" for value in (own, usual)]
        return [] if own == usual else [f"its {key} is {shown[0]}, not {shown[1]}"]
    names = [field.name for field in dataclasses.fields(own)]
    each = (_other(f"{key}.{n}", getattr(own, n), getattr(usual, n)) for n in names)
    return [line for lines in each for line in lines]
