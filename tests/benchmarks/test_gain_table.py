"""Reading table files, and naming their faults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gain.plan import few_labels, make_plan
from benchmarks.gain.table import read_table
from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError

TABLES = Path(__file__).resolve().parents[2] / "benchmarks" / "gain"
TEXT = """
seeds = 2
budgets = [4, 2]
[sets.drawn]
train = "shapes:8"
val = "shapes:4:1"
config.data.shorter = 64
[detectors.retinanet]
train.learning_rate = 0.5
[teacher]
recipe = "configs/folder.py:teacher:{detector}"
config.train.steps = 3
[base]
plain = "configs/folder.py:student:{detector}"
distilled = "configs/folder.py:drkd:{detector}"
config.train.log_every = 1
config.train.learning_rate = 0.25
[arms.plain]
[arms.all]
distill = {}
[arms.pixel]
train.learning_rate = 1
distill.instance_relation.weight = 0
"""


def write(folder: Path, text: str = TEXT) -> Path:
    path = folder / "some.toml"
    path.write_text(text)
    return path


def test_every_combination_is_a_run_and_seeds_come_first(tmp_path):
    plan = make_plan(read_table(write(tmp_path)), tmp_path, None)
    names = [job.name for job in plan.jobs]
    assert names[0] == "drawn/retinanet/teacher"
    assert names[1:7] == [
        f"drawn/retinanet/{arm}/{budget}/seed0"
        for budget in (2, 4)
        for arm in ("plain", "all", "pixel")
    ]
    assert len(names) == 1 + 2 * 2 * 3
    assert names[7].endswith("plain/2/seed1")


def test_overrides_of_an_arm_come_last(tmp_path):
    jobs = make_plan(read_table(write(tmp_path)), tmp_path, None).jobs
    teacher, plain, every, pixel = jobs[:4]
    rates = [job.config["train"]["learning_rate"] for job in (teacher, plain, pixel)]
    assert rates == [0.5, 0.5, 1.0]
    assert [job.steps for job in (teacher, plain)] == [3, 2]
    assert all(job.config["data"]["shorter"] == 64 for job in jobs)
    assert plain.config["distill"] is None
    assert plain.teacher is None
    assert every.teacher is teacher
    assert every.config["teacher"]["checkpoint"] == str(teacher.folder)
    assert pixel.config["distill"]["instance_relation"]["weight"] == 0
    assert "--config.distill.instance_relation.weight=0" in pixel.command("programs")
    assert "--config.seed=1" in jobs[-1].command("programs")


def test_a_teacher_of_another_detector_is_one_for_all_students(tmp_path):
    text = TEXT.replace("[teacher]", '[detectors.faster_rcnn]\n[teacher]\ndetector = "faster_rcnn"')
    plan = make_plan(read_table(write(tmp_path, text)), tmp_path, None)
    teacher, *students = plan.jobs
    assert len(students) == len(plan.students) == 24
    assert teacher.folder == tmp_path / "teachers" / "drawn" / "faster_rcnn"
    assert teacher.config["student"]["detector"] == "faster_rcnn"
    assert teacher.config["train"]["learning_rate"] != 0.5  # which is RetinaNet's
    taught = {job.config["student"]["detector"] for job in students if job.teacher}
    assert taught == {"retinanet", "faster_rcnn"}
    assert {job.config["teacher"]["checkpoint"] for job in students if job.teacher} == {
        str(teacher.folder)
    }
    quick = make_plan(read_table(write(tmp_path, text)).quick(), tmp_path, None)
    assert quick.jobs[0].config["student"]["detector"] == "faster_rcnn"


def test_the_folder_of_data_stands_in_overrides_too(tmp_path):
    init = 'config.train.log_every = 1\nconfig.student.init = "{data}/some.safetensors"'
    table = read_table(write(tmp_path, TEXT.replace("config.train.log_every = 1", init)))
    teacher, plain = make_plan(table, tmp_path, tmp_path).jobs[:2]
    assert plain.config["student"]["init"] == f"{tmp_path}/some.safetensors"
    assert teacher.config["student"]["init"] == ""
    with pytest.raises(UserError, match="say with --data=DIR"):
        make_plan(table, tmp_path, None)


def test_the_folder_of_data_stands_in_recipes_too(tmp_path):
    here = TEXT.replace('plain = "configs', 'plain = "{data}/configs')
    root = TABLES.parents[1]
    jobs = make_plan(read_table(write(tmp_path, here)), tmp_path, root).jobs
    assert jobs[1].recipe == f"{root}/configs/folder.py:student:retinanet"


@pytest.mark.parametrize("path", sorted(TABLES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_tables_of_the_project_fit_their_recipes(path, tmp_path):
    small = Path(__file__).resolve().parents[2] / "no_such_data"
    table = read_table(path)
    if any(each.labels for each in table.sets):
        (tmp_path / "deeppcb" / "images").mkdir(parents=True)
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.png", "width": 9, "height": 9} for i in range(90)
            ],
            "annotations": [],
            "categories": [{"id": 1, "name": "open"}],
        }
        (tmp_path / "deeppcb" / "instances_train.json").write_text(json.dumps(content))
        small = tmp_path
    plan = make_plan(table, tmp_path, small)
    assert len(plan.students) == (
        len(table.seeds) * len(table.detectors) * len(table.budgets) * len(table.arms)
    )
    quick = make_plan(table.quick(), tmp_path, None)
    assert {job.steps for job in quick.jobs} == {2}
    assert {job.config["data"]["val"] for job in quick.jobs} == {"shapes:4:1"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seeds = 2", "seeds = 0", "seeds = 0: should be how many"),
        ("seeds = 2", "", "seeds is missing"),
        ("seeds = 2", "seeds = 2\nsteps = 3", "steps is no key of a table file"),
        ("budgets = [4, 2]", "budgets = [4, 4]", "budgets = [4, 4]: names one twice"),
        ("budgets = [4, 2]", 'budgets = ["4"]', "should be whole numbers above 0"),
        ('val = "shapes:4:1"', "", "sets.drawn.val is missing"),
        ('val = "shapes:4:1"', "val = 4", "sets.drawn.val = 4: should be a text"),
        ("[sets.drawn]", "[sets.drawn]\nlable = 3", "sets.drawn.lable is no key"),
        ("[sets.drawn]", "[sets.drawn]\nlabels = -1", "sets.drawn.labels = -1"),
        (
            "[sets.drawn]",
            "[sets.drawn]\nlabels = [4, 8]",
            "sets.drawn.labels = [4, 8]: should be one number",
        ),
        ("[arms.pixel]", '[arms."a/b"]', "arms.a/b cannot be the name of a folder"),
        ("[arms.plain]", "[arms.plain]\ndistill = 1", "arms.plain.distill should be a table"),
        ("[arms.plain]", "[arms.plain]\ndistill = {}", "reference = 'plain' has to be an arm"),
        ("[arms.plain]", "[arms.other]", "reference = 'plain' has to be an arm"),
        ('recipe = "configs/folder.py:teacher:{detector}"', "", "teacher.recipe is missing"),
        ("seeds = 2", "seeds = ", "is no TOML: Invalid value"),
        (
            "[arms.pixel]",
            "[arms.pixel]\ntrain.steps = 9",
            "arms.pixel.train.steps would change nothing: `budgets` says it for every run",
        ),
        (
            "[arms.pixel]",
            "[arms.pixel]\nconfig.train.flip = 0.0",
            "arms.pixel.config is no key: those of an arm stand without `config.` in front",
        ),
        ("[arms.pixel]", "[arms.pixel]\nseed = 9", "arms.pixel.seed would change nothing"),
        (
            "[arms.pixel]",
            '[arms.pixel]\nteacher.checkpoint = "other"',
            "arms.pixel.teacher.checkpoint would change nothing: [teacher] says it",
        ),
        ("[base]", "[base]\nconfig.train.steps = 9", "base.config.train.steps would change"),
        (
            "config.train.steps = 3",
            'config.data.train = "shapes:9"',
            "teacher.config.data.train would change nothing: `train` of the set says it",
        ),
    ],
)
def test_a_fault_of_the_table_is_named(old, new, words, tmp_path):
    assert old in TEXT
    path = write(tmp_path, TEXT.replace(old, new))
    with pytest.raises(UserError) as caught:
        read_table(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "instance_relation.weight",
            "instance_relation.wait",
            "arms.pixel: distill.instance_relation.wait is no key of configs/folder.py:drkd:"
            "retinanet; distill.instance_relation has",
        ),
        ("instance_relation.weight", "relation.weight", "distill.relation.weight is no key"),
        ("config.train.steps = 3", 'config.train.steps = "3"', "teacher: train.steps = '3'"),
        ("folder.py:student", "folders.py:student", "folders.py: no such file; there are demo, "),
        ("folder.py:student", "folder.py:pupil", "unknown form 'pupil'"),
        (
            "folder.py:student",
            "folder.py:drkd",
            "base.plain = 'configs/folder.py:drkd:retinanet' is a recipe with a teacher, which "
            "the arm 'plain' cannot",
        ),
        (
            "folder.py:drkd",
            "folder.py:student",
            "base.distilled = 'configs/folder.py:student:retinanet' is a recipe without a teacher",
        ),
        ('"shapes:8"', '"coco:{data}/i:{data}/j"', "say with --data=DIR"),
        ("teacher:{detector}", "teacher:{model}", "known in braces are {data}, {set}, {detector}"),
        ("teacher:{detector}", "teacher:{detector", "teacher:{detector': known in braces are"),
        ("teacher:{detector}", "teacher:{detector.name}", "known in braces are {data}, {set}"),
        ("configs/folder.py:teacher", "foldr:teacher", "no recipe 'foldr'; there are"),
        ("config.data.shorter = 64", "labels = 9", "shapes:8 has 8 images only"),
        (
            "config.train.steps = 3",
            "config.train.steps = 0\nconfig.train.epochs = 2.0",
            "teacher: config.train.epochs = 2.0: a table counts in steps",
        ),
        (
            "config.train.log_every = 1",
            "config.train.epochs = 2.0",
            "arms.plain: config.train.epochs = 2.0: a table counts in steps",
        ),
        (
            'recipe = "configs/folder.py:teacher:{detector}"',
            'workdir = "{data}/none"',
            "--data=DIR",
        ),
    ],
)
def test_a_fault_of_a_run_is_named(old, new, words, tmp_path):
    assert old in TEXT
    path = write(tmp_path, TEXT.replace(old, new))
    with pytest.raises(UserError) as caught:
        make_plan(read_table(path), tmp_path, None)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).count(str(path)) == 1


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.toml cannot be read"):
        read_table(tmp_path / "none.toml")


def test_some_arms_keep_the_reference(tmp_path):
    table = read_table(write(tmp_path))
    chosen = table.chosen(["pixel"], (4,))
    assert [arm.name for arm in chosen.arms] == ["plain", "pixel"]
    assert chosen.seeds == (4,)
    with pytest.raises(UserError, match=r"--only=pixels: .* has no such arm; plain, all, pixel"):
        table.chosen(["pixels"], None)


def test_few_labels_are_the_first_of_a_fixed_order(tmp_path):
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 9, "height": 9} for i in (3, 1, 2, 7)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 5, 5]} for i in (1, 2, 3, 7)
        ],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "all.json").write_text(json.dumps(content))
    spec = few_labels(f"coco:{tmp_path}:{tmp_path}/all.json", 2, tmp_path / "few.json")
    assert spec == f"coco:{tmp_path}:{tmp_path}/few.json"
    few = json.loads((tmp_path / "few.json").read_text())
    # random.Random(0).shuffle([1, 2, 3, 7]) is 3, 1, 2, 7
    assert {image["id"] for image in few["images"]} == {3, 1}
    assert {row["image_id"] for row in few["annotations"]} == {3, 1}
    assert len(open_source(spec)) == 2
    assert few_labels("shapes:8:5", 3, tmp_path / "none.json") == "shapes:3:5"
