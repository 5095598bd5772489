"""The cost of a step: one small step is measured, its parts are only traced."""

import importlib
import json

import jax
import pytest

from drkd_jax import __main__ as command_line
from drkd_jax import models
from drkd_jax.cli import benchmark
from drkd_jax.errors import UserError
from drkd_jax.training import measure
from drkd_jax.training.setup import build_run, keep_programs
from tests.training import tiny

RECIPE = "--config=tests/training/recipe.py:plain"


def test_a_step_is_measured_without_any_file(tmp_path, capsys):
    answer = tmp_path / "cost.json"
    code = command_line.main(
        [
            "benchmark",
            RECIPE,
            "--random",
            "--classes=5",
            "--noparts",
            "--steps=2",
            "--peak-tflops=0.5",
            f"--json={answer}",
            "--config.train.batch_size=2",
        ]
    )
    printed = capsys.readouterr()
    assert code == 0, printed.err
    figures = json.loads(answer.read_text())
    assert figures["batch_size"] == 2
    assert figures["canvas"] == [64, 96]
    assert figures["parts"] == {}
    assert figures["images_per_second"] == pytest.approx(2 / figures["step_seconds"])
    # Forward and backward, two images: ResNet-18 has 1.8 G products at 224 x 224 and width 64;
    # at 64 x 96 and width 8 that is 1/523. Neck, head and losses come on top.
    backbone = 2 * 2 * 3 * 1.8e9 / 523
    assert backbone < figures["flops_written"] < 4 * backbone
    assert figures["flops"] > backbone
    share = figures["flops"] / figures["step_seconds"] / 0.5e12
    assert figures["share_of_peak"] == pytest.approx(share)
    assert figures["memory"]["temporary"] > 0
    words = ("compile ", "images/s", "GFLOP", "of the peak of 0.5", "memory ")
    for word in words:
        assert word in printed.out


def test_every_part_of_a_distilled_step_is_timed(monkeypatch):
    run = build_run(tiny.config(distilled=True))
    batch = run.put(next(measure.train_loader(run.train_source, run.pipeline)))
    traced = {}

    def count(function, *arguments):
        return float(len(jax.make_jaxpr(function)(*arguments).jaxpr.eqns))

    def times(programs, calls):
        traced.update(programs, step=programs["whole"] + 1)
        return traced

    monkeypatch.setattr(measure, "program", count)
    monkeypatch.setattr(measure, "seconds", times)
    parts = measure._parts(run, batch, run.step, steps=1)
    terms = ["pixel_relation", "instance_relation", "instance_feature"]
    assert list(parts) == [
        "student forward",
        "student backward",
        "teacher forward",
        *terms,
        "update",
    ]
    assert len(traced) == 8
    assert parts["update"] == 1
    assert all(value > 0 for value in parts.values()), parts
    # Smaller than the whole, each of them: the difference of two true programs.
    assert all(parts[term] < traced["whole"] / 2 for term in terms), parts


@pytest.mark.parametrize(
    ("name", "groups", "width", "dcn"),
    [
        ("retinanet_r50_fpn_2x_coco_drkd", 64, 4, ""),
        ("faster_rcnn_r50_fpn_2x_coco_drkd", 32, 4, "v1"),
    ],
)
def test_the_paper_s_teachers_need_no_file(name, groups, width, dcn):
    config = importlib.import_module(f"configs.{name}").get_config().to_dict()
    config["train"]["batch_size"] = 1
    with benchmark.without_files(config, classes=3) as values:
        teacher = values["teacher"]
        assert (teacher["init"], teacher["checkpoint"]) == ("random", "")
        wanted = {"depth": 101, "groups": groups, "group_width": width, "dcn": dcn}
        assert teacher["backbone"] == wanted
        model = {key: teacher[key] for key in ("detector", "channels", "extra", "backbone")}
        assert models.abstract_detector(model, 3).spec.strides == (
            (8, 16, 32, 64, 128) if "retina" in name else (4, 8, 16, 32, 64)
        )
    config["teacher"]["checkpoint"] = "weights/mine.pth"
    with pytest.raises(UserError, match=r"mine\.pth': --random needs the teacher's model"):
        benchmark.without_files(config, classes=3).__enter__()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config is missing"),
        ([RECIPE, "more"], "unknown: more; every argument is"),
        ([RECIPE, "--steps=0"], "steps"),
        ([RECIPE, "--nonsense=1"], "nonsense"),
        (
            [RECIPE, "--config.train.batch=1"],
            "error: the config has no key 'batch'; given: --config.train.batch=1",
        ),
        ([RECIPE, "--config.train.steps=1e3"], "steps=1e3: must be a whole number"),
        (
            ["--config=folder:student", "--config.teacher.checkpoint=x"],
            "error: --config.teacher.checkpoint: config.teacher is empty in this recipe",
        ),
        ([RECIPE, RECIPE], f"error: give one --config, not several: {RECIPE}, {RECIPE}"),
        (["--config.train.steps=3"], "error: --config is missing; given: --config.train."),
        ([RECIPE, "--config.train.parallel=pmap"], "measures config.train.parallel = 'jit'"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(arguments, words, capsys):
    assert command_line.main(["benchmark", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_a_folder_for_compiled_programs_is_made_and_used(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        keep_programs(tmp_path / "programs")
        assert (tmp_path / "programs").is_dir()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "programs")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
