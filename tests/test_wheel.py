"""The wheel in a separate environment outside the checkout: the command ``drkd``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from drkd_jax.recipes.finding import recipe_names

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "train.py")
FOLDERS = ("drkd_jax", "configs", "crosscheck", "benchmarks")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy: setuptools leaves files in its folder and reuses old ones."""
    pytest.importorskip("setuptools", "77", reason="`make env` installs it")
    pytest.importorskip("pip")
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    (source / "models").symlink_to("drkd_jax/models")
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, *words, f"--wheel-dir={target}", "."]
    subprocess.run(command, cwd=source, check=True)
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def place(wheel, tmp_path_factory) -> Path:
    """A folder with an environment in ``env``: the wheel and, by a path, its dependencies."""
    place = tmp_path_factory.mktemp("elsewhere")
    venv.create(place / "env", symlinks=True)  # without pip: this environment's installs
    python = place / "env" / "bin" / "python"
    words = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    checked([sys.executable, "-m", "pip", f"--python={python}", *words], cwd=place)
    own = checked([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], place)
    # A path from a .pth file comes last. The .pth files in it are ignored, such as that of an
    # editable drkd_jax.
    needed = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    Path(own.strip(), "needed.pth").write_text("\n".join(needed) + "\n")
    return place


def checked(command, cwd) -> str:
    """The output of a command, which must succeed."""
    done = outside(command, cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def outside(command, cwd) -> subprocess.CompletedProcess[str]:
    """Runs a command without the checkout on its path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(word) for word in command]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def drkd(place: Path, *arguments: str) -> str:
    return checked([place / "env" / "bin" / "drkd", *arguments], place)


def test_the_wheel_holds_the_package_with_its_recipes_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"drkd_jax", f"drkd_jax-{version('drkd-jax')}.dist-info"}
    package, recipes = ROOT / "drkd_jax", ROOT / "configs"
    files = [path for path in package.rglob("*") if path.is_file()]
    wanted = {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}
    wanted |= {f"drkd_jax/configs/{path.name}" for path in recipes.glob("*.py")}
    assert {name for name in names if name.startswith("drkd_jax/")} == wanted


def test_drkd_trains_scores_predicts_and_exports(place):
    """With a plain student, since tracing a distilled step takes longer than all of this."""
    drkd(place, "train", "--config=overfit:tiny", "--workdir=run")
    assert json.loads((place / "run" / "summary.json").read_text())["steps"] == 2
    assert "AP50" in drkd(place, "evaluate", "--workdir=run")

    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    cv2.imwrite(str(place / "image.png"), image)
    drkd(place, "predict", "--workdir=run", "--out=drawn", "image.png")
    assert list((place / "drawn").iterdir())
    drkd(place, "export", "--workdir=run", "--format=safetensors", "student.safetensors")
    assert (place / "student.safetensors").stat().st_size > 1000


def test_drkd_tells_what_there_is(place):
    listed = drkd(place, "recipes").splitlines()
    assert [line.split()[0] for line in listed] == recipe_names()
    assert "--train-teacher" in drkd(place, "demo", "--help")
    assert "--workdir" in drkd(place, "train", "--help")


def test_what_is_imported_is_the_wheel(place):
    code = "import drkd_jax, importlib.util as u; print(drkd_jax.__file__, u.find_spec('configs'))"
    file, configs = checked([place / "env" / "bin" / "python", "-c", code], place).split()
    assert Path(file).is_relative_to(place / "env")
    assert configs == "None"


def test_an_unknown_recipe_is_told_in_one_line(place):
    done = outside([place / "env" / "bin" / "drkd", "train", "--config=foldr:drkd"], place)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: no recipe 'foldr'; there are {', '.join(recipe_names())}")
