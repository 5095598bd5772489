"""The tiny form of another recipe that keeps its teacher: ``quick.py:FILE.py:FORM``."""

from __future__ import annotations

from ml_collections import ConfigDict

from benchmarks.gain.recipes import ROOT
from drkd_jax.recipes import common
from drkd_jax.recipes.finding import load_recipe


def get_config(name: str) -> ConfigDict:
    config = load_recipe(name, ROOT)
    # The teacher's model comes from its checkpoint; shrinking would use a random one.
    teacher, config.teacher = config.teacher, None
    config = common.tiny(config)
    config.teacher = teacher
    return config
