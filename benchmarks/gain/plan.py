"""Makes runs from a table: each has a folder, a recipe with overrides, and perhaps a teacher.

    WORKDIR/teachers/SET/DETECTOR (the teacher's)        shared by all tables of a work folder
    WORKDIR/TABLE/SET/DETECTOR/ARM/BUDGET/seedN

The first seed of all runs comes before the second, so that a table that is stopped early compares
arms over the same seeds.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gain.recipes import ROOT, as_flags, resolve
from benchmarks.gain.table import Arm, DataSet, Overrides, Table
from drkd_jax.data.sources import open_source
from drkd_jax.data.sources.coco import CocoSource
from drkd_jax.errors import UserError, faults_of
from drkd_jax.fault_tolerance.writing import write_text
from drkd_jax.recipes.finding import load_recipe


@dataclasses.dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        name: A readable name, unique in the table.
        place: Set and detector; for a student also arm, budget and seed.
        folder: Its work folder.
        recipe: The value of ``--config``.
        overrides: Overrides by dotted key.
        config: The resulting config, as a plain nested dict.
        teacher: The job that must be done before; None for plain students, for teachers, and if the
            teacher was trained elsewhere.
    """

    name: str
    place: dict[str, Any]
    folder: Path
    recipe: str
    overrides: Overrides
    config: dict[str, Any]
    teacher: Job | None = None

    @property
    def is_student(self) -> bool:
        """Whether this is a run of an arm."""
        return "arm" in self.place

    @property
    def steps(self) -> int:
        """The length of the run."""
        return int(self.config["train"]["steps"])

    def command(self, programs: str | Path) -> list[str]:
        """The command that trains it, to be run in the checkout.

        Args:
            programs: Folder of compiled programs.
        """
        return [
            sys.executable,
            "train.py",
            f"--config={self.recipe}",
            f"--workdir={self.folder}",
            f"--compilation-cache={programs}",
            *as_flags(self.overrides),
        ]

    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run, also if it stopped early; None: not finished."""
        try:
            summary = dict(json.loads((self.folder / "summary.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None
        own_rule = f"(config.train.early_stop = {self.config['train'].get('early_stop')})"
        stopped = str(summary.get("ended")).endswith(own_rule)
        done = stopped or summary.get("steps") == self.steps
        return summary if done and (self.folder / "detections.json").is_file() else None


@dataclasses.dataclass(frozen=True)
class Plan:
    """All runs of a table.

    Attributes:
        table: The table.
        folder: The folder of its reports.
        teachers: Jobs, or (trained elsewhere) work folders, by set and the students' detector;
            empty if no arm has a teacher.
        students: Jobs in the order of execution.
        val: Data sources for the scores, by set.
    """

    table: Table
    folder: Path
    teachers: dict[tuple[str, str], Job | Path]
    students: tuple[Job, ...]
    val: dict[str, str]

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All runs; teachers before their students."""
        trained = {e.folder: e for e in self.teachers.values() if isinstance(e, Job)}
        return (*trained.values(), *self.students)


def make_plan(table: Table, workdir: Path, data: Path | None) -> Plan:
    """Lists the runs of a table; writes only the files of few labels.

    Args:
        table: The table.
        workdir: The work folder of all tables.
        data: The value of `{data}`; None if the table does not use it.

    Raises:
        UserError: A recipe, key or data source is wrong; the message names the table's file.
    """
    with faults_of(table.path):
        return _plan(table, workdir, data)


def _plan(table: Table, workdir: Path, data: Path | None) -> Plan:
    folder = workdir / table.name
    sets = {each.name: _placed(each, data, folder / "labels") for each in table.sets}
    teachers: dict[tuple[str, str], Job | Path] = {}
    if any(arm.distilled for arm in table.arms):
        shared = folder if table.name.endswith("-quick") else workdir
        for (name, (full, _)), detector in _pairs(sets, table.detectors):
            own = table.teacher.detector or detector
            where = shared / "teachers" / name / own
            teachers[name, detector] = _teacher(table, full, own, where, data)
    students = tuple(
        _student(table, arm, sets[name][1], detector, budget, seed, folder, data, teachers)
        for seed in table.seeds
        for name in sets
        for detector in table.detectors
        for budget in table.budgets
        for arm in table.arms
    )
    return Plan(table, folder, teachers, students, {name: s[0].val for name, s in sets.items()})


def _pairs(sets: dict[str, Any], detectors: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    return ((each, detector) for each in sets.items() for detector in detectors)


def _filled(text: str, data: Path | None, **names: str) -> str:
    if "{data}" in text and data is None:
        raise UserError(f"'{text}': say with --data=DIR what {{data}} is")
    try:
        return text.format(data=data, **names)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        known = ", ".join(f"{{{name}}}" for name in ("data", *names))
        raise UserError(f"'{text}': known in braces are {known}") from error


def _filled_values(overrides: Overrides, data: Path | None) -> Overrides:
    """Overrides with the folder in place of `{data}`; other braces stay."""
    texts = {k: v for k, v in overrides.items() if isinstance(v, str) and "{data}" in v}
    return {**overrides, **{key: _filled(text, data) for key, text in texts.items()}}


def _placed(each: DataSet, data: Path | None, labels: Path) -> tuple[DataSet, DataSet]:
    """A set with its folder filled in, for the teacher and for the students."""
    full = dataclasses.replace(each, train=_filled(each.train, data), val=_filled(each.val, data))
    if each.labels is None:
        return full, full
    few = few_labels(full.train, each.labels, labels / f"{each.name}-{each.labels}.json")
    return full, dataclasses.replace(full, train=few)


def few_labels(spec: str, number: int, path: Path) -> str:
    """A data source with the first images of a set in a fixed random order.

    Args:
        spec: ``coco:IMAGES:JSON``, or ``shapes:N[:SEED]``, whose images are in random order.
        number: The number of images.
        path: The output file for the instances of ``coco:``.

    Raises:
        UserError: The set has fewer images, or is of another kind.
    """
    source = open_source(spec)
    if number > len(source):
        raise UserError(f"labels = {number}: {spec} has {len(source)} images only")
    if spec.startswith("shapes:"):
        return ":".join(["shapes", str(number), *spec.split(":")[2:]])
    if not isinstance(source, CocoSource):
        raise UserError(f"labels = {number}: few labels want coco: or shapes:, not {spec}")
    content = json.loads(source.instances_json.read_text())
    order = sorted(image["id"] for image in content["images"])
    random.Random(0).shuffle(order)
    kept = set(order[:number])
    few = {
        **content,
        "images": [image for image in content["images"] if image["id"] in kept],
        "annotations": [row for row in content["annotations"] if row["image_id"] in kept],
    }
    text = json.dumps(few)
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    return f"coco:{source.images_dir}:{path}"


def _teacher(
    table: Table, data_set: DataSet, detector: str, folder: Path, data: Path | None
) -> Job | Path:
    teacher, names = table.teacher, {"set": data_set.name, "detector": detector}
    if teacher.workdir:
        found = Path(_filled(teacher.workdir, data, **names)).absolute()
        if not (found / "summary.json").is_file():
            raise UserError(f"teacher.workdir: {found} holds no finished run")
        return found
    overrides = {
        **data_set.overrides,
        **table.detectors.get(detector, {}),
        **teacher.overrides,
        **_of_the_run(data_set, teacher.seed),
    }
    overrides = _filled_values(overrides, data)
    recipe = _filled(teacher.recipe, data, **names)
    config = _in_steps(recipe, overrides, "teacher")
    name = f"{data_set.name}/{detector}/teacher"
    return Job(name, names, folder, recipe, overrides, config)


def _student(
    table: Table,
    arm: Arm,
    data_set: DataSet,
    detector: str,
    budget: int,
    seed: int,
    folder: Path,
    data: Path | None,
    teachers: dict[tuple[str, str], Job | Path],
) -> Job:
    teacher = teachers[data_set.name, detector] if arm.distilled else None
    overrides = {
        **table.base,
        **data_set.overrides,
        **table.detectors[detector],
        **arm.overrides,
        **_of_the_run(data_set, seed),
        "train.steps": budget,
    }
    overrides = _filled_values(overrides, data)
    if teacher is not None:
        checkpoint = teacher.folder if isinstance(teacher, Job) else teacher
        overrides["teacher.checkpoint"] = str(checkpoint)
    recipe = _filled(table.distilled if arm.distilled else table.plain, data, detector=detector)
    distils = load_recipe(recipe, ROOT).get("teacher") is not None
    if distils != arm.distilled:
        key, kind = ("distilled", "without") if arm.distilled else ("plain", "with")
        raise UserError(
            f"base.{key} = '{recipe}' is a recipe {kind} a teacher, which the arm "
            f"'{arm.name}' cannot be trained by; an arm has a teacher where it has `distill`"
        )
    place = {
        "set": data_set.name,
        "detector": detector,
        "arm": arm.name,
        "budget": budget,
        "seed": seed,
    }
    parts = (data_set.name, detector, arm.name, str(budget), f"seed{seed}")
    return Job(
        "/".join(parts),
        place,
        folder.joinpath(*parts),
        recipe,
        overrides,
        _in_steps(recipe, overrides, f"arms.{arm.name}"),
        teacher if isinstance(teacher, Job) else None,
    )


def _in_steps(recipe: str, overrides: Overrides, where: str) -> dict[str, Any]:
    """The config of a run; its length must be given in steps."""
    config = resolve(recipe, overrides, where)
    if epochs := config["train"]["epochs"]:
        raise UserError(
            f"{where}: config.train.epochs = {epochs}: a table counts in steps; set "
            "config.train.epochs = 0.0, and of a teacher config.train.steps"
        )
    return config


def _of_the_run(data_set: DataSet, seed: int) -> Overrides:
    return {"data.train": data_set.train, "data.val": data_set.val, "seed": seed}
