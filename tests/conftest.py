"""Runs before all tests: CPU, quick and cached compilation, checked shape annotations."""

from __future__ import annotations

import gc
import os
import re
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Halves the time of compiling; the speed of programs matters in few tests.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Tracing creates many long-lived objects: garbage collection among them, and finding the line of
# each equation, took a tenth of the time.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
gc.set_threshold(50_000, 20, 10)
# The older code generator of XLA's CPU compiler needs half the time for a program of many small
# kernels; from jaxlib 0.11 on there is only the new one.
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    older = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    # Flags from outside come last and take precedence.
    os.environ["XLA_FLAGS"] = f"{older} {os.environ.get('XLA_FLAGS', '')}".strip()

import jaxtyping  # noqa: E402
from absl import flags  # noqa: E402

# Grain's workers read absl flags, which are not parsed under pytest.
flags.FLAGS.mark_as_parsed()

SHAPED = re.compile(r"\b(Bool|Float|Int|UInt|Shaped|Key|PRNGKeyArray)")
_jaxtyped = jaxtyping.jaxtyped


def _checked(*given: Any, **settings: Any) -> Any:
    """`jaxtyped`, except for functions without shapes in their signature: mypy checks those.

    Wrapping them takes seconds per process. Functions inside functions would be wrapped again at
    every call, which takes a quarter of the time of tracing.
    """
    if not given:
        return partial(_checked, **settings)
    (made,) = given
    if isinstance(made, FunctionType):
        said = " ".join(map(str, made.__annotations__.values()))
        if not SHAPED.search(said):
            return made
    return _jaxtyped(made, **settings)


# Every jaxtyping signature of the package becomes a run-time check of shapes and dtypes.
jaxtyping.jaxtyped = _checked
jaxtyping.install_import_hook("drkd_jax", "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402

from tests.quick_lowering import share_contexts  # noqa: E402

share_contexts()

pytest_plugins = ["tests.numeric_report", "tests.jitter"]

# Files whose few tests take minutes; started last, they would keep a single process busy.
LONG = (
    "training/test_devices.py",
    "training/test_resume.py",
    "test_configs.py",
    "training/test_loop.py",
    "cli/test_demo.py",
    "training/test_overfit.py",
    "benchmarks/test_gain.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first."""

    def rank(item: pytest.Item) -> int:
        name = item.path.relative_to(ROOT / "tests").as_posix()
        return LONG.index(name) if name in LONG else len(LONG)

    items.sort(key=rank)


@pytest.fixture(scope="module")
def whole_compile():
    """Compiles as users do, for programs that run longer than they compile."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)


SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def coco_sample() -> Path:
    """The folder of a small real COCO set, if it exists beside the project."""
    folder = SHARED / "coco2017_sample"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/coco2017_sample beside the project")
    return folder


@pytest.fixture(scope="session")
def deeppcb() -> Path:
    """The folder of a real set of small defects, if it exists beside the project."""
    folder = SHARED / "deeppcb"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/deeppcb beside the project")
    return folder
