"""Values that a config cannot hold: each is refused by the name of its key."""

import copy
import dataclasses
import re

import pytest

from drkd_jax.data.config import PipelineConfig, read_pipeline
from drkd_jax.distill.config import TERMS, DistillConfig, distill_config
from drkd_jax.errors import UserError
from drkd_jax.models.build import fill_settings
from drkd_jax.step.settings import EvalSettings, TrainSettings, eval_settings, train_settings
from drkd_jax.training.setup import read_sections
from drkd_jax.values import typed
from tests.training import tiny

CONFIG = tiny.config()
STRANGE = ({}, 10**400, float("nan"), ("a",))


def names(kind, *without):
    # These check themselves, and the tests' run-time type checks come before that.
    without += ("canvases", "scale_jitter", "nodes")
    return [field.name for field in dataclasses.fields(kind) if field.name not in without]


def pipeline(values):
    return read_pipeline({**CONFIG, "data": CONFIG["data"] | values}, 1)


READERS = {
    "train": (lambda values: train_settings(CONFIG["train"] | values), names(TrainSettings)),
    "eval": (eval_settings, names(EvalSettings)),
    "data": (pipeline, names(PipelineConfig, "batch_size", "seed")),
    "distill": (distill_config, names(DistillConfig, *TERMS)),
    **{
        f"distill.{term}": (lambda values, term=term: distill_config({term: values}), names(kind))
        for term, kind in TERMS.items()
    },
}


@pytest.mark.parametrize("part", READERS)
def test_a_value_of_another_type_is_refused_by_its_key(part):
    read, keys = READERS[part]
    for key in keys:
        for value in STRANGE:
            with pytest.raises(UserError, match=re.escape(key)):
                read({key: value})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": 7}, "config.data must hold keys of its own, not 7"),
        ({"distill": "yes"}, "config.distill must hold keys of its own"),
        ({"data": {**CONFIG["data"], "train": 7}}, "config.data.train must be str, not 7"),
        ({"student": {"init": True}}, "config.student.init must be str, not True"),
    ],
)
def test_a_part_or_a_path_of_another_type_is_refused_by_name(change, told):
    with pytest.raises(UserError, match=told):
        read_sections({**copy.deepcopy(CONFIG), **change})


def test_a_detector_is_named_in_words():
    with pytest.raises(UserError, match="detector must be str"):
        fill_settings({"detector": {"a": 1}})


@pytest.mark.parametrize("key", ["canvases", "shorter", "longer"])
def test_a_key_without_which_nothing_is_read_is_named(key):
    with pytest.raises(UserError, match=f"config.data.{key} is missing"):
        pipeline({key: None})


@pytest.mark.parametrize("seed", ["3", 1.5, 2**31, 2**32])  # JAX takes 2**32 for 0
def test_a_seed_that_jax_would_take_for_another_is_refused(seed):
    with pytest.raises(UserError, match=r"config\.seed must be"):
        read_pipeline({**CONFIG, "seed": seed}, 1)


def test_whole_numbers_are_numbers_and_lists_are_tuples():
    assert typed("x", 3, float) == 3.0
    assert typed("x", [1, 2.5], tuple[float, ...]) == (1.0, 2.5)
    assert typed("x", None, int | None) is None
