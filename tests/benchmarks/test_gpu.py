"""benchmarks/gpu.py: its evaluation of a profile, and its tables; measuring needs a GPU."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from benchmarks.gpu.kernels import Seen, by_part, kernels_of, place
from benchmarks.gpu.table import markdown
from benchmarks.h100.counting import Walk
from benchmarks.h100.hlo import read_module

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (ROOT / "tests" / "fixtures" / "h100" / "step.hlo").read_text()


@pytest.fixture(scope="module")
def parts():
    return {kernel.name: kernel.part for kernel in Walk(read_module(PROGRAM)).kernels}


def test_kernels_are_placed_by_instruction_by_name_and_by_graph(parts):
    seen = [
        Seen("sm90_gemm", "conv", 2, 4.0),  # a library's kernel, named by the profiler
        Seen("of_teacher", "command_buffer_1", 2, 2.0),  # XLA's own, in a graph
        Seen("sm90_gemm", "command_buffer_1", 2, 1.0),  # a library's, in the same graph
        Seen("sm90_gemm", "command_buffer_2", 2, 0.5),  # in one of which nothing is known
        Seen("cut__3", "", 2, 0.25),  # the third pass of a kernel
    ]
    found = [at.part for at in place(read_module(PROGRAM), seen)]
    assert found == [parts["conv"], parts["of-teacher"], parts["of-teacher"], "rest", parts["cut"]]
    assert parts["of-teacher"] != "rest"

    figures = by_part(PROGRAM, seen, steps=2, top=2)
    assert figures["busy_ms"] == pytest.approx(7.75 / 2)
    assert sum(row["ms"] for row in figures["parts"].values()) == pytest.approx(7.75 / 2)
    assert figures["parts"][parts["of-teacher"]]["kernels"] >= 2
    assert [one["ms"] for one in figures["longest"]] == [2.0, 1.0]


def test_a_graph_of_several_parts_places_nothing(parts):
    assert parts["cut"] != parts["of-teacher"]
    seen = [
        Seen("of_teacher", "command_buffer_1", 1, 2.0),
        Seen("cut", "command_buffer_1", 1, 1.0),
        Seen("sm90_gemm", "command_buffer_1", 1, 1.0),
    ]
    assert place(read_module(PROGRAM), seen)[2].part == "rest"


def test_a_profile_of_a_cpu_has_no_kernels_of_a_gpu(tmp_path):
    import jax

    jax.profiler.start_trace(str(tmp_path))
    jax.block_until_ready(jax.numpy.ones(3) + 1)
    jax.profiler.stop_trace()
    assert list(tmp_path.rglob("*.xplane.pb"))
    assert kernels_of(tmp_path) == []


def test_the_table_has_ratios_counts_and_what_failed():
    case = {
        "device": "a GPU",
        "jax": "0",
        "precision": "bfloat16",
        "batch": [8, 800, 1344, 3],
        "ms": 50.0,
        "in_a_row_ms": 49.0,
        "peak_gb": 4.0,
        "busy_ms": 45.0,
        "parts": {"heads": {"ms": 12.0, "kernels": 400.0}},
    }
    result = {
        "cases": {"retinanet_r50_x_drkd-plain": case, "b-drkd": {"failed": "exit code 1:\nwhy"}},
        "torch": {"cases": {"retinanet plain": {"ms": 125.0, "peak_gb": 12.0}}},
    }
    one = {"recipe": "retinanet_r50_x", "devices": 1, "parts": {"heads": {"ms": 10.0}}}
    text = markdown(result, {"cases": [one]})
    assert "**2.50**" in text
    assert "| heads | 12.00 (10.00) |" in text
    assert "**b-drkd failed**: why" in text


def test_every_case_waits_for_its_turn_and_a_failure_takes_nothing_away(tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"))["main"]
    main.__globals__["_ceilings"] = lambda *_: {}
    code = main(
        [f"--out={tmp_path}", "--torch-python=-", "--recipe=nowhere", "--kinds=plain", "--tiny"]
    )
    assert code == 1
    assert (tmp_path / "nowhere-plain" / "go").exists()
    assert "nowhere-plain failed" in (tmp_path / "gpu.md").read_text()
    assert "no recipe" in capsys.readouterr().err


def test_a_pytorch_side_that_hangs_or_is_not_there_takes_nothing_away(tmp_path, capsys):
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    space = runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"))
    for python, why in ((slow, "timed out after"), (tmp_path / "none", "No such file")):
        flags = [f"--out={tmp_path}", f"--torch-python={python}", "--torch-limit=0.1", "--tiny"]
        assert space["_torch"](space["_parser"]().parse_args(flags), tmp_path) == {}
        assert why in capsys.readouterr().err
