"""The documents are right about files, and about how to add a term (docs/architecture.md)."""

import functools
import inspect
import re
import subprocess
import sys
import types
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from drkd_jax.distill import Distiller
from drkd_jax.distill import config as distill_config
from tests.distill.common import call, pyramid, targets

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "training|weights|models|ops|data|distill|export|report|recipes|cli|demo"
    "|step|fault_tolerance|monitoring|distill/baselines"
)
TOP = "docs|tests|benchmarks|crosscheck|configs|drkd_jax"
# A path from the root, one inside the package, or a file's bare name.
PATH = re.compile(
    rf"(?<![\w/.\-<~:=])((?:{TOP})/[\w./-]*[a-z\d]/?"
    rf"|(?:{PACKAGES})/(?:[a-z\d_]+/)*[a-z\d_]+\.(?:py|md)"
    rf"|(?:\.\./)?[a-z\d_-]+\.(?:py|md))(?![\w*/{{<])"
)
# From the term that is added below, other projects, placeholders, and outputs of commands.
FOREIGN = re.compile(
    r"NAME|half_l1|upgrade_model_version|ops/poolers|configs/(_base_|dcn)|^(gain|sweep)\.md"
    r"|^models/(task_modules|detection|roi_heads)/"
)


def tracked() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no checkout")
    return [name for name in listed.stdout.split("\n") if name and (ROOT / name).is_file()]


def missing(text: str, files: Iterable[str], *, bare: bool) -> set[str]:
    """Paths in a text that do not exist; bare file names are checked only with `bare`."""
    ends, places = known(frozenset(files))

    def there(path: str) -> bool:
        path = path.removeprefix("../")
        if "/" not in path:
            return not bare or path in ends
        path = re.sub(r"^drkd_jax/configs", "configs", path.rstrip("/"))  # their place in a wheel
        return bool({path, f"drkd_jax/{path}", f"tests/{path}"} & places)

    return {path for path in PATH.findall(text) if not FOREIGN.search(path) and not there(path)}


@functools.cache
def known(files: frozenset[str]) -> tuple[set[str], set[str]]:
    """Names of files, and paths of files and folders."""
    folders = {str(parent) for name in files for parent in Path(name).parents}
    return {Path(name).name for name in files}, files | folders


def test_every_path_that_is_named_is_there():
    files = frozenset(tracked())
    wrong = {}
    for name in files:
        of_ours = name.startswith(("drkd_jax/", "configs/", "benchmarks/", "docs/"))
        if not name.endswith((".md", ".py")) or not (of_ours or "/" not in name):
            continue
        text = (ROOT / name).read_text()
        if found := missing(text, files, bare=name.endswith(".md")):
            wrong[name] = sorted(found)
    assert not wrong


def test_a_path_that_is_not_there_is_found():
    files = {"drkd_jax/ops/nms.py", "docs/data.md", "tests/ops/test_nms.py"}
    text = "`ops/nms.py`, `ops/nmx.py`, (docs/data.md), [x](date.md), `tests/ops/`, tests/opus/x"
    assert missing(text, files, bare=True) == {"ops/nmx.py", "date.md", "tests/opus/x"}
    assert missing("docs/data.md#form configs/NAME.py <gone.md>", files, bare=True) == set()


def test_a_term_is_added_as_the_document_says(monkeypatch):
    """Its file is run, and its line is inserted into a copy of `distill/config.py`."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    (code,) = re.findall(r"```python\n(# distill/baselines/half_l1.py\n.*?)```", text, re.DOTALL)
    file, line = code.split("# distill/config.py, in DistillConfig\n")
    term, config = types.ModuleType("half_l1"), types.ModuleType("own_config")
    for module in (term, config):  # dataclasses look them up there
        monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile("from __future__ import annotations\n" + file, "half_l1", "exec"), vars(term))
    source = inspect.getsource(distill_config)
    last = "    crosskd: CrossKDConfig | None = CrossKDConfig()\n"
    assert source.count(last) == 1
    config.HalfL1Config = term.HalfL1Config  # its import
    exec(compile(source.replace(last, f"{last}    {line}"), "own_config", "exec"), vars(config))

    assert "half_l1" in config.TERMS
    off = dict.fromkeys(("pixel_relation", "instance_relation", "instance_feature"))
    settings = {**off, "standardize_teacher": False, "half_l1": {"weight": 3.0, "share": 0.25}}
    student, teacher = pyramid(0, 4), pyramid(1, 4)
    made = config.distill_config(settings)
    distiller = Distiller(made, student.spec, teacher.spec, rngs=nnx.Rngs(0))
    out = call(distiller, student, teacher, targets())
    wanted = 0.0
    for s, t, (height, width) in zip(student.maps, teacher.maps, ((4, 6), (2, 3)), strict=True):
        seen = np.s_[:, :height, :width]  # cells that begin on the images, of 32 x 44
        wanted += 0.25 * np.abs(np.float64(t)[seen] - np.float64(s)[seen]).mean()
    np.testing.assert_allclose(out.losses["half_l1"], wanted, rtol=1e-6)
    np.testing.assert_allclose(out.total, 3 * wanted, rtol=1e-6)
    assert "half_l1" not in config.distill_config(off).terms
