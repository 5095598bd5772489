"""`python -m drkd_jax crosscheck`: every formula of the project against PyTorch, on this machine.

The two sides may live in different interpreters: they exchange .npz files in a folder.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drkd_jax.cli.arguments import Parser
from drkd_jax.cli.crosscheck_cases import Case, all_cases, official_cases
from drkd_jax.cli.crosscheck_ours import answer
from drkd_jax.errors import UserError

GRADIENT_FLOOR = 1e-3  # of the case's largest gradient: some gradients are exactly 0


@dataclasses.dataclass(frozen=True)
class Row:
    """One compared tensor."""

    component: str
    tensor: str
    absolute: float
    relative: float
    tolerance: float

    @property
    def passes(self) -> bool:
        """Whether the relative error keeps the tolerance; not a number does not."""
        return self.relative <= self.tolerance


def compare(
    case: Case, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> list[Row]:
    """Rows of one case: outputs by their own norm, gradients by the larger of theirs and a floor.

    Args:
        case: what was computed.
        ours: "out|NAME", "dx|NAME" and "dp|NAME".
        theirs: the same names from the reference.
    """
    norms = {name: float(np.linalg.norm(value)) for name, value in theirs.items()}
    largest = max((norm for name, norm in norms.items() if name[0] == "d"), default=0.0)
    rows = []
    for name, value in theirs.items():
        off = np.asarray(ours[name], np.float64) - value
        forward = name.startswith("out|")
        size = norms[name] if forward else max(norms[name], GRADIENT_FLOOR * largest)
        distance = float(np.linalg.norm(off))
        rows.append(
            Row(
                case.name,
                name.replace("|", " ").replace("out ", ""),
                float(np.abs(off).max(initial=0)),
                distance / size if size else distance,
                case.forward if forward else case.gradient,
            )
        )
    missing = set(ours) - set(theirs)
    assert not missing, f"the reference does not answer {missing} of {case.name}"
    return rows


def write_cases(cases: Sequence[Case], folder: Path) -> None:
    """Writes cases.json and cases.npz, as the reference reads them."""
    described = [
        {"name": case.name, "component": case.component, "settings": case.settings}
        for case in cases
    ]
    (folder / "cases.json").write_text(json.dumps(described, indent=1))
    arrays: dict[str, Any] = {
        f"{case.name}|{kind}|{name}": value
        for case in cases
        for kind, values in case.arrays.items()
        for name, value in values.items()
    }
    np.savez(folder / "cases.npz", **arrays)


def read_answers(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """The reference's answers by case and name."""
    answers: dict[str, dict[str, np.ndarray]] = {}
    with np.load(folder / "answers.npz") as file:
        for key in file.files:
            case, name = key.split("|", 1)
            answers.setdefault(case, {})[name] = file[key]
    return answers


def start_reference(folder: Path, python: str, official: str | None) -> subprocess.Popen[str]:
    """Starts the reference on a folder of cases, in an interpreter that has torch."""
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [python, "-m", "drkd_jax.reference", str(folder), *([official] if official else [])]
    try:
        return subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except OSError as error:
        raise UserError(f"--torch-python {python}: cannot be started ({error})") from error


def _ours(case: Case) -> dict[str, np.ndarray]:
    cpu = jax.devices("cpu")[0]
    with jax.enable_x64(case.name.endswith("float64")), jax.default_device(cpu):
        arrays = {
            kind: {name: jax.numpy.asarray(value) for name, value in values.items()}
            for kind, values in case.arrays.items()
        }
        return answer(case.component, case.settings, arrays)


def _torch_python(given: str | None) -> str:
    if given is not None:
        return given
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "this interpreter has no torch: name one that has it with --torch-python PATH, for "
            "example of `python3 -m venv .venv-torch && .venv-torch/bin/pip install torch numpy`"
        )
    return sys.executable


def _table(rows: Sequence[Row], everything: bool) -> list[str]:
    """One line a tensor; without `everything` the worst output and the worst gradient of a case."""
    shown: list[Row] = []
    if everything:
        shown = list(rows)
    else:
        worst: dict[tuple[str, bool], Row] = {}
        for row in rows:
            key = row.component, row.tensor[:3] in ("dx ", "dp ")
            if key not in worst or not row.relative <= worst[key].relative:
                worst[key] = row
        failed = [row for row in rows if not row.passes and row not in worst.values()]
        shown = [*worst.values(), *failed]
    wide = max(len(row.component) for row in shown)
    long = max(len(row.tensor) for row in shown)
    head = f"{'component':{wide}}  {'tensor':{long}}  absolute  relative  tolerance  verdict"
    return [head] + [
        f"{row.component:{wide}}  {row.tensor:{long}}  {row.absolute:8.1e}  {row.relative:8.1e}  "
        f"{row.tolerance:9.0e}  {'ok' if row.passes else 'FAILS'}"
        for row in shown
    ]


def main(argv: Sequence[str]) -> int:
    """Runs both sides, prints the table.

    Returns:
        1 where any tensor is off by more than its tolerance, else 0.

    Raises:
        UserError: no torch, or a checkout that is not the author's.
    """
    parser = Parser("crosscheck", "every formula against PyTorch, on this machine")
    parser.add_argument("--torch-python", help="interpreter that has torch (default: this one)")
    parser.add_argument("--official", metavar="DIR", help="checkout of the author's repository")
    parser.add_argument("--json", metavar="FILE", help="write all compared tensors to FILE")
    parser.add_argument("--all", action="store_true", help="print every tensor, not the worst ones")
    parser.add_argument("--keep", metavar="DIR", help="leave the exchanged files in DIR")
    arguments = parser.parse_args(list(argv))
    python = _torch_python(arguments.torch_python)
    official = arguments.official
    if official and not (Path(official) / "mmdet/models/detectors/GloRe.py").is_file():
        raise UserError(f"--official {official}: no mmdet/models/detectors/GloRe.py in there")
    cases: list[Case] = []
    for dtype in ("float32", "float64"):
        cases += all_cases(dtype)
        cases += official_cases(dtype) if official else []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_cases(cases, folder)
        reference = start_reference(folder, python, official)
        try:
            ours = {case.name: _ours(case) for case in cases}
            said, complaint = reference.communicate()
        finally:
            reference.kill()
        if reference.returncode:
            lines = complaint.strip().splitlines() or ["no message"]
            raise UserError(f"the reference in {python} stopped: {lines[-1]}")
        theirs = read_answers(folder)
    rows = [row for case in cases for row in compare(case, ours[case.name], theirs[case.name])]
    print("\n".join(_table(rows, arguments.all)))
    failed = sum(not row.passes for row in rows)
    print(
        f"{len(rows)} tensors of {len(cases)} cases, {failed} off by more than their tolerance; "
        f"JAX {jax.__version__}, {said.strip()}"
    )
    if arguments.json:
        described = [dataclasses.asdict(row) | {"passes": row.passes} for row in rows]
        Path(arguments.json).write_text(json.dumps(described, indent=1))
    return 1 if failed else 0
