"""Which configs a run may resume with."""

import json

import jax
import numpy as np
import pytest

from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance import same_run
from drkd_jax.fault_tolerance.same_run import (
    check_same_run,
    code_digest,
    differing_keys,
    program_difference,
    require_same_program,
)

CONFIG = {"seed": 1, "train": {"steps": 9, "momentum": 0.9}, "eval": {"batch_size": 2}}


def test_another_config_is_refused_with_every_key_that_differs(tmp_path):
    stored = json.loads(json.dumps(CONFIG))
    longer = {**CONFIG, "train": {"steps": 90, "momentum": 0.9}, "eval": {"batch_size": 5}}
    check_same_run(stored, longer, tmp_path)
    other = {**CONFIG, "seed": 2, "train": {"steps": 9, "momentum": 0.8, "clip_norm": 1.0}}
    with pytest.raises(
        UserError,
        match=r"differ: seed \(1 there, 2 here\), train\.clip_norm \(None there, 1\.0 here\), "
        r"train\.momentum \(0\.9 there, 0\.8 here\)\. Use",
    ):
        check_same_run(stored, other, tmp_path)


def test_long_values_are_shown_from_where_they_differ(tmp_path):
    folder = "coco:/a/long/way/to/the/images:/a/long/way/to"
    old, new = ({**CONFIG, "data": {"train": f"{folder}/{name}"}} for name in ("a.json", "b.json"))
    with pytest.raises(
        UserError,
        match=r"data\.train \(\.\.\.ng/way/to/a\.json there, \.\.\.ng/way/to/b\.json here\)\. Use",
    ):
        check_same_run(old, new, tmp_path)


@pytest.mark.parametrize(("form", "goes_on"), [("paper", False), ("official", True)])
def test_a_run_of_before_compare_compared_values(form, goes_on, tmp_path):
    """The default has changed since: such a run must not silently continue with another loss."""
    pixel = {"form": form, "weight": None}
    old, new, values = (
        {**CONFIG, "distill": {"pixel_relation": pixel | more}}
        for more in ({}, {"compare": None}, {"compare": "values"})
    )
    if goes_on:
        check_same_run(old, new, tmp_path)
        return
    check_same_run(old, values, tmp_path)
    with pytest.raises(UserError, match=r"compare \(values there, None here\)\. Use"):
        check_same_run(old, new, tmp_path)


def test_a_distiller_that_came_since_is_another_run_only_where_it_is_on(tmp_path):
    pixel = {"weight": 0.5, "compare": "values"}
    stored = {**CONFIG, "distill": {"region_size": 3, "pixel_relation": pixel}}
    off = {"pkd": {"weight": 0.0}, "mgd": {"weight": 0.0, "masked": 0.65}, "schedule": "constant"}
    check_same_run(stored, {**stored, "distill": stored["distill"] | off}, tmp_path)
    on = stored["distill"] | off | {"cwd": {"weight": 10.0}}
    with pytest.raises(UserError, match=r"differ: distill\.cwd \(None there"):
        check_same_run(stored, {**stored, "distill": on}, tmp_path)


def test_lists_and_tuples_are_the_same_config():
    assert differing_keys({"a": [1, [2]]}, {"a": (1, (2,))}) == []
    assert differing_keys({"a": None}, {"a": {"b": 1}}) == ["a"]


def test_processes_of_one_run_have_one_program():
    first = {"config": CONFIG | {"data": {"num_threads": 3}}, "code": code_digest(), "jax": "1"}
    assert program_difference(first, first) == ""
    assert code_digest() == first["code"]
    own = first | {"config": {**CONFIG, "seed": 2, "data": {"num_threads": 8}}}
    assert "another config than process 0;" in program_difference(first, own)
    assert ": seed (1 there, 2 here). Start all" in program_difference(first, own)
    assert "runs other code" in program_difference(first, own | {"code": "x"})
    assert program_difference(first, own | {"jax": "2"}).startswith(
        "has jax 2, and process 0 has 1"
    )


def test_the_process_that_differs_is_named_to_all(monkeypatch):
    require_same_program(CONFIG)  # alone
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(same_run, "broadcast", lambda make: make())  # this is process 0
    third = np.frombuffer(b"runs other code".ljust(same_run._WORDS, b"\0"), np.uint8)[None]
    monkeypatch.setattr(same_run, "from_all", lambda own: np.concatenate([own, own, third]))
    with pytest.raises(UserError, match=r"^process 2 runs other code$"):
        require_same_program(CONFIG)
