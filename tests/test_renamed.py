"""Old names of keys and flags are answered with the new ones."""

import json

import pytest

from benchmarks.gain.recipes import resolve
from drkd_jax import __main__ as program
from drkd_jax.demo import run as demo
from drkd_jax.distill.config import distill_config
from drkd_jax.errors import UserError
from drkd_jax.recipes.flag_faults import flag_fault
from drkd_jax.renamed import FLAGS, KEYS
from drkd_jax.step.settings import eval_settings, train_settings
from tests.training import tiny

READ = {"train": train_settings, "eval": eval_settings, "distill": distill_config}
RENAMED = [(section, *names) for section, pairs in KEYS.items() for names in pairs.items()]


@pytest.mark.parametrize(("section", "old", "new"), RENAMED)
def test_an_old_key_is_answered_with_the_new_one(section, old, new):
    said = f"config.{section}.{old} was renamed to config.{section}.{new}"
    with pytest.raises(UserError, match=f"^{said}$"):
        READ[section]({old: 1})
    flag = f"--config.{section}.{old}=1"
    assert str(flag_fault(AttributeError(old), ["train.py", "--config=x", flag])) == said
    with pytest.raises(UserError, match=f"^table: {said}$"):
        resolve("folder:drkd", {f"{section}.{old}": 1}, "table")


@pytest.mark.parametrize(
    ("command", "old", "new"), [(name, *pair) for name in FLAGS for pair in FLAGS[name].items()]
)
def test_an_old_flag_is_answered_with_the_new_one(capsys, command, old, new):
    for argv in ([f"{old}=1"], [old, "1"]):
        assert program.main([command, "--weights=x", *argv]) == 2
        assert capsys.readouterr().err == f"error: {old} was renamed to {new}\n"


def test_a_demo_of_before_goes_on(tmp_path):
    config = {**tiny.config(), "eval": {"max_images": 2}}
    job = demo.Job(demo.PLAIN, "a", tmp_path, config)
    stage = {"config": {**config, "eval": {"max_pictures": 2}}}
    (tmp_path / "stage.json").write_text(json.dumps(stage))
    demo._check_folder(job)
    stage["config"]["eval"] = {"max_pictures": 3}
    (tmp_path / "stage.json").write_text(json.dumps(stage))
    with pytest.raises(UserError, match=r"other settings \(eval.max_images\)"):
        demo._check_folder(job)
