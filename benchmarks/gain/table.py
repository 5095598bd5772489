"""A table file: which students are trained on which data, and compared with which reference.

    seeds = 5                          # 0 to 4; or a list
    budgets = [800, 2400]              # steps of a student
    reference = "plain"                # the arm that the others are compared with

    [sets.NAME]                        # as many as wanted
    train = "coco:{data}/images:{data}/train.json"
    val = "coco:{data}/images:{data}/val.json"
    labels = 84                        # optional: students see only so many training images
    config.data.shorter = 512          # optional: for teacher and students of this set

    [detectors.faster_rcnn]            # as many as wanted; keys below it as under `config`
    [teacher]
    recipe = "configs/folder.py:teacher:{detector}"
    config.train.steps = 3000          # or: workdir = "runs/{set}/{detector}", trained before
    detector = "faster_rcnn"           # optional: the teacher's, for all students
    [base]
    plain = "configs/folder.py:student:{detector}"
    distilled = "configs/folder.py:drkd:{detector}"
    config.train.eval_every = 0        # optional: for every arm
    [arms.plain]
    [arms.drkd]
    distill = {}                       # an arm with `distill` has a teacher
    [arms.pixel]
    distill.instance_relation.weight = 0

`{data}` is the folder of ``--data``, also in recipes and overrides. Overrides are keys of the
recipe, as on the command line of `train.py`; those of an arm come last. Settings that the table
itself determines (the students' data, seeds, steps and teacher) are refused as overrides.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from drkd_jax.errors import UserError

Overrides = dict[str, Any]  # by dotted key of a config

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")  # names of sets and arms are also folder names
_QUICK_RECIPE = "benchmarks/gain/quick.py"
# Keys that the table itself sets, and where; they are refused as overrides.
_FIXED = {
    "data.train": "`train` of the set",
    "data.val": "`val` of the set",
    "seed": "`seeds`, or `teacher.seed`",
}
_FIXED_OF_STUDENTS = _FIXED | {"train.steps": "`budgets`", "teacher.checkpoint": "[teacher]"}


@dataclasses.dataclass(frozen=True)
class DataSet:
    """The sources of images; `labels`: how many training images the students see."""

    name: str
    train: str
    val: str
    labels: int | None
    overrides: Overrides


@dataclasses.dataclass(frozen=True)
class Arm:
    """One kind of student."""

    name: str
    distilled: bool
    overrides: Overrides


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A recipe to train a teacher, or (`workdir`) the folder of a trained one.

    `detector`: the value of `{detector}` in them, whose overrides apply; "": the student's.
    """

    recipe: str
    workdir: str
    detector: str
    seed: int
    overrides: Overrides


@dataclasses.dataclass(frozen=True)
class Table:
    """The content of a table file.

    Attributes:
        name: The file's name without its ending.
        path: The file.
        seeds: Seeds of the students.
        budgets: Steps of a student, in rising order.
        reference: Name of the arm that all others are compared with.
        sets: The data sets.
        detectors: Overrides by detector name.
        teacher: The source of teachers.
        plain: Recipe of the arms without a teacher.
        distilled: Recipe of the arms with one.
        base: Overrides of every arm.
        arms: The arms in the order of the file.
    """

    name: str
    path: Path
    seeds: tuple[int, ...]
    budgets: tuple[int, ...]
    reference: str
    sets: tuple[DataSet, ...]
    detectors: dict[str, Overrides]
    teacher: Teacher
    plain: str
    distilled: str
    base: Overrides
    arms: tuple[Arm, ...]

    def chosen(self, arms: list[str] | None, seeds: tuple[int, ...] | None) -> Table:
        """The same table with some of its arms (the reference stays) and other seeds.

        Raises:
            UserError: An arm is unknown.
        """
        names = [arm.name for arm in self.arms]
        for name in arms or []:
            if name not in names:
                raise UserError(f"--only={name}: {self.path} has no such arm; {', '.join(names)}")
        kept = {*(arms or names), self.reference}
        return dataclasses.replace(
            self,
            arms=tuple(arm for arm in self.arms if arm.name in kept),
            seeds=self.seeds if seeds is None else seeds,
        )

    def quick(self) -> Table:
        """Every arm and detector for two steps on eight drawn images, two seeds.

        The models are those of the recipes' tiny form; only the overrides of arms stay.
        """
        few = 4 if any(each.labels for each in self.sets) else None
        return dataclasses.replace(
            self,
            name=f"{self.name}-quick",
            seeds=(0, 1),
            budgets=(2,),
            sets=(DataSet("shapes", "shapes:8", "shapes:4:1", few, {}),),
            detectors={name: {} for name in self.detectors},
            teacher=dataclasses.replace(
                self.teacher,
                recipe=_quick(self.teacher.recipe or self.plain),
                workdir="",
                seed=0,
                overrides={},
            ),
            plain=_quick(self.plain),
            distilled=_quick(self.distilled),
            base={},
        )


def _quick(recipe: str) -> str:
    return f"{_QUICK_RECIPE}:{recipe}"


def read_table(path: str | Path) -> Table:
    """Reads a table file.

    Raises:
        UserError: The file cannot be read, or a key is unknown, missing or of the wrong type; the
            message names it.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"table {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"table {path} is no TOML: {error}") from error
    top = _Section(path, "", content)
    base = top.section("base")
    table = Table(
        name=path.stem,
        path=path,
        seeds=_seeds(top),
        budgets=tuple(sorted(top.numbers("budgets"))),
        reference=top.text("reference", "plain"),
        sets=tuple(_data_set(each) for each in top.sections("sets")),
        detectors={each.name: each.overrides() for each in top.sections("detectors")},
        teacher=_teacher(top.section("teacher")),
        plain=base.text("plain"),
        distilled=base.text("distilled"),
        base=base.section("config", {}).overrides(_FIXED_OF_STUDENTS),
        arms=tuple(_arm(each) for each in top.sections("arms")),
    )
    base.end()
    top.end()
    plain = [arm.name for arm in table.arms if not arm.distilled]
    if table.reference not in plain:
        raise UserError(
            f"{path}: reference = '{table.reference}' has to be an arm without `distill`; there "
            f"are {', '.join(plain) or 'none'}"
        )
    return table


class _Section:
    """A TOML table whose keys are taken out one by one, so that unknown ones can be named."""

    def __init__(self, path: Path, where: str, content: Any):
        if not isinstance(content, Mapping):
            raise UserError(f"{path}: {where} = {content!r}: should be a table of keys")
        self.path, self.where, self.content = path, where, dict(content)
        self.name = where.rpartition(".")[2]

    def _at(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def error(self, key: str, what: str) -> UserError:
        return UserError(f"{self.path}: {self._at(key)} {what}")

    def take(self, key: str, default: Any = None) -> Any:
        if key not in self.content and default is None:
            raise self.error(key, "is missing")
        return self.content.pop(key, default)

    def text(self, key: str, default: str | None = None) -> str:
        value = self.take(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"= {value!r}: should be a text")
        return value

    def numbers(self, key: str) -> list[int]:
        value = self.take(key)
        given = value if isinstance(value, list) else [value]
        if not given or not all(_is_count(each) and each > 0 for each in given):
            raise self.error(key, f"= {value!r}: should be whole numbers above 0")
        if len(set(given)) < len(given):
            raise self.error(key, f"= {value!r}: names one twice")
        return given

    def section(self, key: str, default: dict[str, Any] | None = None) -> _Section:
        return _Section(self.path, self._at(key), self.take(key, default))

    def sections(self, key: str) -> Iterator[_Section]:
        found = _Section(self.path, self._at(key), self.take(key))
        if not found.content:
            raise self.error(key, "is empty: name at least one")
        for name, content in found.content.items():
            if not _NAME.fullmatch(name):
                raise found.error(name, "cannot be the name of a folder: letters, digits, _ . + -")
            yield _Section(self.path, found._at(name), content)

    def overrides(self, fixed: Mapping[str, str] = _FIXED) -> Overrides:
        """The remaining keys, flat; keys that the table itself sets are refused."""
        found = dict(_flatten(self.content))
        for key in (each for each in fixed if each in found):
            raise self.error(key, f"would change nothing: {fixed[key]} says it for every run")
        self.content = {}
        return found

    def end(self) -> None:
        if self.content:
            raise self.error(next(iter(self.content)), "is no key of a table file; see gain.py")


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _seeds(top: _Section) -> tuple[int, ...]:
    value = top.take("seeds")
    if _is_count(value) and value > 0:
        return tuple(range(value))
    if isinstance(value, list) and value and all(map(_is_count, value)):
        return tuple(dict.fromkeys(value))
    raise top.error("seeds", f"= {value!r}: should be how many, or a list of whole numbers")


def _data_set(section: _Section) -> DataSet:
    labels = section.numbers("labels") if "labels" in section.content else [None]
    if len(labels) > 1:
        raise section.error(
            "labels", f"= {labels}: should be one number; another wants its own set"
        )
    found = DataSet(
        section.name,
        section.text("train"),
        section.text("val"),
        labels[0],
        section.section("config", {}).overrides(),
    )
    section.end()
    return found


def _teacher(section: _Section) -> Teacher:
    seed = section.take("seed", 0)
    if not _is_count(seed):
        raise section.error("seed", f"= {seed!r}: should be a whole number")
    workdir = section.text("workdir", "")
    found = Teacher(
        section.text("recipe", "" if workdir else None),
        workdir,
        section.text("detector", ""),
        seed,
        section.section("config", {}).overrides(),
    )
    section.end()
    return found


def _arm(section: _Section) -> Arm:
    distilled = "distill" in section.content
    if distilled and not isinstance(section.content["distill"], Mapping):
        raise section.error("distill", "should be a table of keys; {} for the recipe's own")
    if isinstance(section.content.get("config"), Mapping):
        raise section.error("config", "is no key: those of an arm stand without `config.` in front")
    return Arm(section.name, distilled, section.overrides(_FIXED_OF_STUDENTS))
