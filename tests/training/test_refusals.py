"""Configs that a run refuses before it writes anything."""

import pytest

from drkd_jax.errors import UserError
from drkd_jax.training import loop
from drkd_jax.training.setup import build_run
from tests.training import tiny


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": {"early_stop": 2}}, "early_stop = 2 counts evaluations, and .*eval_every = 0"),
        ({"train": {"accumulate": 3}}, "accumulate = 3: 4 images on 1 device"),
        ({"teacher": None}, "there is no teacher"),
        ({"student": None}, "config.student is missing"),
        ({"extra": {}}, "config.extra: no such part"),
        ({"data": {"canvases": ((64, 100),)}}, r"\(64, 100\) is not a multiple .* \(64, 128\)"),
        ({"data": {"shuffle": True}}, "config.data.shuffle: no such key"),
        ({"data": {"longer": 10}}, "config.data: longer = 10"),
        ({"student": {"init": "nowhere"}}, "config.student.init = nowhere: not there"),
        ({"student": {"depth": 3}}, "config.student: unknown setting 'depth'"),
        ({"teacher": {"channels": 0}}, "config.teacher: channels is 0"),
        ({"teacher": {"init": ""}}, "the teacher is untrained"),
        ({"teacher": {"init": "", "checkpoint": "gone"}}, "= gone: not there.* another one$"),
        ({"teacher": {"init": "xavier"}}, "config.teacher.init"),
        ({"distill": {"pixels": {}}}, "distill.pixels"),
    ],
)
def test_a_wrong_config_is_refused_before_anything_is_written(change, words, tmp_path):
    config = tiny.config(distilled=True)
    for part, values in change.items():
        config[part] = {**(config.get(part) or {}), **values} if values is not None else None
    with pytest.raises(UserError, match=words):
        loop.train(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_pmap_knows_no_batch_statistics():
    config = tiny.config(parallel="pmap")
    config["student"]["backbone"]["norm"] = "bn"
    with pytest.raises(UserError, match=r"parallel = 'pmap' .* norm 'frozen_bn' or 'gn'"):
        build_run(config)
