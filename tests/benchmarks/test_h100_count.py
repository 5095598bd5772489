"""The count of a program for an H100: its parser, its arithmetic, and the compiled step."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import drkd_jax
from benchmarks.h100 import compiling, parts, steps
from benchmarks.h100.counting import Walk, count
from benchmarks.h100.hlo import Frame, read_module, read_shapes
from benchmarks.h100.machine import RATES
from benchmarks.h100.parts import part_of
from drkd_jax.errors import UserError
from drkd_jax.models.build import fill_settings
from drkd_jax.training.setup import build_run
from drkd_jax.weights.libraries import mmdet
from tests.training import tiny
from tests.weights.libraries.test_libraries import MMDET, PAPER_S_TEACHER

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "fixtures" / "h100" / "step.hlo"
CONVOLUTION = 2 * (2 * 8 * 8 * 32) * (3 * 3 * 16)  # operations
MAPS = {"images": 2 * 8 * 8 * 16 * 2, "kernel": 3 * 3 * 16 * 32 * 2, "map": 2 * 8 * 8 * 32 * 2}


@pytest.fixture(scope="module")
def module():
    return read_module(PROGRAM.read_text())


@pytest.fixture(scope="module")
def kernels(module):
    return {kernel.name: kernel for kernel in Walk(module).kernels}


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(ROOT / "benchmarks" / "h100_count.py"))["main"]


def moved(kernel):
    return kernel.work.read, kernel.work.written


def test_shapes_of_every_kind():
    shapes = read_shapes("(bf16[2,3]{1,0:T(8,128)}, s32[], pred[<=5], s4[3], token[])")
    assert [(shape.elements, shape.size) for shape in shapes] == [
        *((6, 12), (1, 4), (5, 5), (3, 2), (1, 0))
    ]


def test_a_convolution_costs_the_same_in_all_three_directions(kernels):
    for name in ("conv", "of-teacher", "of-filter", "of-input"):
        assert kernels[name].work.flops == CONVOLUTION, name
        assert kernels[name].work.factors == "bfloat16"
    # The libraries' working memory does not count as written.
    assert moved(kernels["conv"]) == (MAPS["images"] + MAPS["kernel"], MAPS["map"])
    assert moved(kernels["of-input"]) == (MAPS["map"] + MAPS["kernel"], MAPS["images"])
    assert kernels["of-teacher"].work.kind == "convolution with bias and Relu"


def test_products_of_a_library_and_inside_of_a_fusion(kernels):
    single, fused = kernels["product"].work, kernels["both"].work
    assert single.flops == fused.flops == 2 * 64 * 32 * 16
    assert (single.factors, fused.factors) == ("float32", "bfloat16")
    assert (fused.read, fused.written) == (2 * (64 * 32 + 32 * 16), 4 * (64 * 16 + 64))


def test_a_product_that_is_added_to_a_sum_has_the_type_of_its_factors():
    text = PROGRAM.read_text().replace("(%precise, %factor)", "(%left, %right, %precise)")
    kernels = {kernel.name: kernel for kernel in Walk(read_module(text)).kernels}
    assert kernels["product"].work.factors == "bfloat16"
    assert kernels["product"].work.read == 2 * (64 * 32 + 32 * 16) + 4 * 64 * 32


def test_a_fusion_reads_and_writes_what_it_needs_alone(kernels):
    assert moved(kernels["cut"]) == (10 * 4, 10 * 2)  # ten of a thousand numbers
    assert moved(kernels["changed"]) == (4 * 4 + 4, 4 * 4)  # a row of a table, in place


def test_loops_count_by_their_trips(module):
    def runs(walk):
        found = [(kernel.name, kernel.times) for kernel in walk.kernels]
        return sorted(entry for entry in found if entry[0] in ("square", "less"))

    walk = Walk(module)
    assert runs(walk) == [("less", 2), ("square", 1), ("square", 5)]
    assert [(loop.name, loop.part, loop.trips) for loop in walk.loops] == [("unsaid", "NMS", 1)]
    assert runs(Walk(module, {"NMS": 7})) == [("less", 8), ("square", 5), ("square", 7)]


def test_collectives(module, kernels):
    large = kernels["reduced"]
    assert large.sent == (2_000_000, 2 * 7 / 8 * 2_000_000, 8)
    assert kernels["small"].sent == (40, 70, 8)
    assert kernels["gathered"].sent == (160, 120, 4)
    assert kernels["everybody"].sent == (40, 70, 8)
    assert "sum-of-all" not in kernels
    assert large.seconds() == pytest.approx(3_500_000 / RATES.links + RATES.launch)
    found = count(module)["collectives"]
    assert found["kinds"] == {
        "all-reduce": {"number": 3, "mb": pytest.approx(2.00008)},
        "all-gather": {"number": 1, "mb": pytest.approx(0.00016)},
    }
    assert [one["name"] for one in found["large"]] == ["reduced"]


def test_every_kernel_has_its_part(kernels):
    assert {name: kernel.part for name, kernel in kernels.items()} == {
        **dict.fromkeys(("conv", "of-filter", "of-input"), "student backbone"),
        "turned": "rest",  # created by the compiler, and read by nothing
        "of-teacher": "teacher",
        **dict.fromkeys(("product", "both"), "pixel relation"),
        "cut": "proposals",
        **dict.fromkeys(("square", "less"), "NMS"),
        "changed": "optimiser",
        **dict.fromkeys(("reduced", "small", "gathered", "everybody"), "between GPUs"),
    }
    assert {name for name, kernel in kernels.items() if kernel.backward} == {
        *("of-filter", "of-input")
    }
    assert kernels["conv"].where == "models/resnet.py:20 Block.__call__"


def test_parts_add_up_to_the_whole(module):
    found = count(module)
    for key in ("kernels", "tflop", "gb", "ms", "ms_backward"):
        total = sum(row[key] for row in found["parts"].values())
        assert found["whole"][key] == pytest.approx(total)
    # 4 convolutions, 2 products, 3 fusions and copies, 5 + 1 + 2 in loops, 4 collectives
    assert found["whole"]["kernels"] == 4 + 2 + 3 + 8 + 4
    assert found["whole"]["tflop"] == pytest.approx((4 * CONVOLUTION + 2 * 65536) / 1e12)


def test_the_time_of_a_kernel_is_the_longest_of_its_reasons(kernels):
    conv = kernels["conv"]
    by_memory = sum(moved(conv)) / RATES.memory
    assert conv.seconds() == pytest.approx(by_memory + RATES.launch)
    many = conv.work._replace(flops=10**12)
    conv = type(conv)(**{**vars(conv), "work": many, "times": 3})
    assert conv.seconds() == pytest.approx(3 * (10**12 / RATES.bfloat16 + RATES.launch))


def test_the_command_reads_a_program_and_tells_what_was_before(main, tmp_path, capsys):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert main(["--read", str(PROGRAM), f"--json={first}"]) == 0
    out = capsys.readouterr().out
    assert "| 1 | handmade, without distillation, 8 GPUs, 2 images each, bf16 | 21 |" in out
    assert "| 2.25 | 1.50 |" in out  # buffers
    assert "NMS (ops/nms.py:30 nms) 1 x" in out
    assert "| all-reduce-start | 2.00 | 1 |" in out
    results = json.loads(first.read_text())
    assert results["assumed"]["launch"] == 2.5e-6
    case = results["cases"][0]
    assert case["buffers"]["temporary"] == 2_250_000_000

    again = ["--read", str(PROGRAM), f"--against={first}", "--trips=NMS=100", f"--json={second}"]
    assert main(again) == 0
    out = capsys.readouterr().out
    was, now = (json.loads(file.read_text())["cases"][0]["whole"]["ms"] for file in (first, second))
    assert now > was
    assert f"**{now:.1f}** (was {was:.1f})" in out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no program", "no HLO module"),
        ("// h100_count {oops\n", "its first line is damaged"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_program_is_said_in_one_line(main, tmp_path, capsys, text, words):
    file = tmp_path / "some.hlo"
    if text is not None:
        file.write_text(text)
    assert main(["--read", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error
    assert str(file) in error


def test_where_the_compiler_is_missing_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape(f"'jax[cuda13]=={jax.__version__}'")):
        compiling.set_up()


def test_a_real_program_is_read():
    def run(x, y):
        return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ y), x)

    x, y = jax.ShapeDtypeStruct((8, 16), "float32"), jax.ShapeDtypeStruct((16, 16), "float32")
    compiled = jax.jit(run).lower(x, y).compile()
    module = read_module(compiled.as_text())
    assert Walk(module, {"rest": 3}).kernels
    assert {shape.dims for one in module.entry.parameters.values() for shape in one.shapes} == {
        *((8, 16), (16, 16))
    }


def test_rules_name_files_and_functions_that_are_there():
    package = Path(drkd_jax.__file__).parent
    sources = {
        file.relative_to(package).with_suffix("").as_posix(): file.read_text()
        for file in package.rglob("*.py")
    }
    defined = {name: set(re.findall(r"def (\w+)\(", text)) for name, text in sources.items()}
    for file, function, part in parts._RULES:
        assert part in parts.PARTS
        for one in file.split("|") if "(" not in file else [file]:
            found = [name for name in sources if re.fullmatch(one, name)]
            assert found, one
        functions = set().union(*(defined[name] for name in sources if re.fullmatch(file, name)))
        for one in filter(None, function.split("|")):
            assert any(re.fullmatch(one, name) for name in functions), (file, one)
    assert {f"distill/{name}" for name in parts._TERMS} <= set(sources)


def test_the_innermost_line_that_says_something_decides():
    def at(*places):
        return part_of([Frame(f"/x/drkd_jax/{file}.py", name, 1) for file, name in places])

    step = ("step/train_step", "loss_terms")
    assert at(("boxes", "overlap"), ("ops/nms", "nms"), ("models/rpn", "propose"), step) == "NMS"
    head = ("models/retina_head", "RetinaHead.after")
    assert at(("ops/conv", "convolve"), head, ("models/retinanet", "losses_after"), step) == "heads"
    cut = ("distill/regions", "cut")
    assert at(("ops/roi_tiles", "read"), cut, step) == "distillation RoIAlign"
    assert at(("ops/roi_tiles", "read"), ("models/roi_head", "RoIHead.pool"), step) == "RoIAlign"
    assert at(step) == "rest"


def test_the_step_is_that_of_a_run():
    config = tiny.config(distilled=True)
    config["teacher"]["backbone"] |= {"norm": "frozen_bn", "frozen_stages": 1}
    run = build_run(config)
    classes = len(run.train_source.categories)
    step = steps.abstract_step(config, classes=classes, images=len(run.train_source))

    def described(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, jnp.dtype(leaf.dtype)), tree)

    assert described(step.state) == described(run.state)
    assert described(step.teacher) == described(run.teacher_arrays)
    own, built = step.recipe, run.recipe
    assert own.graphs == built.graphs
    assert own.weights == built.weights
    assert own.pixels == built.pixels == own.teacher_pixels == built.teacher_pixels
    assert own.schedule(7) == built.schedule(7)
    assert steps.least_trips(step) == {}  # RetinaNet samples no regions


FILES = {
    "retinanet_x101_64x4d": "retinanet_x101-64x4d_fpn_1x_coco",
    "faster_rcnn_x101_64x4d": "faster-rcnn_x101-64x4d_fpn_1x_coco",
    "cascade_mask_rcnn_x101_32x4d_fpn_dconv": PAPER_S_TEACHER,
}


@pytest.mark.parametrize("name", sorted(steps.TEACHERS))
def test_teachers_are_what_their_files_hold(name):
    read = mmdet.read(MMDET[FILES[name]], {}, f"{name}.pth").settings({})
    theirs, own = fill_settings(read)[1], fill_settings(steps.TEACHERS[name])[1]
    for key in ("backbone", "channels", "min_level", "max_level", "extra", "extra_relu"):
        assert getattr(theirs, key) == getattr(own, key), key


def test_recipes_name_teachers_that_are_known():
    for recipe in ("retinanet_r50_fpn_2x_coco_drkd", "faster_rcnn_r50_fpn_2x_coco_drkd"):
        config = steps.read_config(recipe, plain=False, precision="bfloat16", batch_size=16)
        assert any(name in config["teacher"]["checkpoint"] for name in steps.TEACHERS)
    plain = steps.read_config(recipe, plain=True, precision="bfloat16", batch_size=16)
    assert steps.least_trips(steps.abstract_step(plain)) == {
        "RoIAlign": 1
    }  # 512 per image, for any batch
    with pytest.raises(UserError, match="no weights are read here"):
        steps.abstract_teacher({"checkpoint": "runs/own"})
