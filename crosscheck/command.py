"""`python -m drkd_jax crosscheck`: compares all formulas with PyTorch, on this machine.

The two sides may run in different interpreters; they exchange .npz files in a folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from crosscheck import authors, crosskd, map_terms, official, ours, torchvision
from crosscheck.authors import authors_cases
from crosscheck.case import Case
from crosscheck.cases import all_cases
from crosscheck.compare import Row, compare
from crosscheck.crosskd import crosskd_cases
from crosscheck.exchange import read_answers, write_cases
from crosscheck.map_terms import map_term_cases
from crosscheck.official_cases import official_cases
from crosscheck.reference.checkouts import OWN, recognised
from drkd_jax.cli.arguments import Parser
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.writing import make_folder, make_place, write_json

COMPONENTS: dict[str, ours.Component] = {}
for _module in (ours, official, map_terms, crosskd, authors):
    COMPONENTS |= _module.COMPONENTS


def start_reference(
    folder: Path, python: str, checkouts: Collection[Path]
) -> subprocess.Popen[str]:
    """Starts the reference on a folder of cases, in an interpreter with torch."""
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [python, "-m", "crosscheck.reference", str(folder), *map(str, checkouts)]
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


def our_answer(case: Case) -> dict[str, np.ndarray]:
    """Our outputs and gradients of a case, on the CPU."""
    cpu = jax.devices("cpu")[0]
    with jax.enable_x64(case.name.endswith("float64")), jax.default_device(cpu):
        arrays = {
            kind: {name: jax.numpy.asarray(value) for name, value in values.items()}
            for kind, values in case.arrays.items()
        }
        return ours.answer(COMPONENTS[case.component], case.settings, arrays)


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
    """Lines for `everything`, or for each case's worst output, worst gradient and failures."""
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
    """Runs both sides and prints the table.

    Returns:
        1 if any tensor is off by more than its tolerance, else 0.

    Raises:
        UserError: no torch, a folder that is not a known checkout, or conflicting options.
    """
    parser = Parser("crosscheck", "every formula against PyTorch, on this machine")
    parser.add_argument("--torch-python", help="interpreter that has torch (default: this one)")
    parser.add_argument(
        "--official",
        metavar="DIR",
        nargs="+",
        action="extend",
        default=[],
        help="checkouts of authors' repositories, any of docs/tests.md: their own code as well",
    )
    parser.add_argument("--json", metavar="FILE", help="write all compared tensors to FILE")
    parser.add_argument("--all", action="store_true", help="print every tensor, not the worst ones")
    parser.add_argument("--keep", metavar="DIR", help="leave the exchanged files in DIR")
    parser.add_argument("--only", metavar="TEXT", help="only cases whose name has TEXT in it")
    parser.add_argument(
        "--torchvision",
        action="store_true",
        help="instead: Faster R-CNN and RetinaNet, R50, against torchvision's own, stage by stage",
    )
    arguments = parser.parse_args(list(argv))
    if arguments.torchvision and arguments.official:
        raise UserError("--torchvision and --official are two comparisons: ask for one at a time")
    if arguments.json:
        make_place(arguments.json, "--json")
    if arguments.keep:
        make_folder(arguments.keep, "--keep")
    python = _torch_python(arguments.torch_python)
    if arguments.torchvision:
        return _torchvision(python, arguments)
    try:
        checkouts = recognised(arguments.official)
    except ValueError as error:
        raise UserError(f"--official {error}") from error
    cases: list[Case] = []
    for dtype in ("float32", "float64"):
        cases += all_cases(dtype)
        cases += map_term_cases(dtype)
        cases += crosskd_cases(dtype)
        cases += official_cases(dtype) if OWN in checkouts else []
        cases += authors_cases(dtype, checkouts)
    cases = [case for case in cases if (arguments.only or "") in case.name]
    if not cases:
        raise UserError(f"--only {arguments.only}: no case has that in its name")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.keep or temporary)
        write_cases(cases, folder)
        reference = start_reference(folder, python, set(checkouts.values()))
        try:
            answers = {}
            for case in tqdm(cases, unit="case", disable=None):
                if reference.poll():  # report its error below at once, not after minutes of work
                    break
                answers[case.name] = our_answer(case)
            said, complaint = reference.communicate()
        finally:
            reference.kill()
        if reference.returncode:
            lines = complaint.strip().splitlines() or ["no message"]
            raise UserError(f"the reference in {python} stopped: {lines[-1]}")
        theirs = read_answers(folder)
    rows = [row for case in cases for row in compare(case, answers[case.name], theirs[case.name])]
    print("\n".join(_table(rows, arguments.all)))
    failed = sum(not row.passes for row in rows)
    print(
        f"{len(rows)} tensors of {len(cases)} cases, {failed} off by more than their tolerance; "
        f"JAX {jax.__version__}, {said.strip()}"
    )
    _write(rows, arguments.json)
    return 1 if failed else 0


def _torchvision(python: str, arguments: argparse.Namespace) -> int:
    """Compares the detectors with torchvision's; 1 if any tensor is off, else 0."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.keep or temporary)
        with jax.default_device(jax.devices("cpu")[0]):
            rows, said = torchvision.live(folder, python, arguments.only or "")
    print("\n".join(torchvision.table(rows, arguments.all)))
    failed = sum(not row.passes for row in rows)
    print(
        f"{len(rows)} comparisons, {failed} off by more than their tolerance; "
        f"JAX {jax.__version__}, {said}"
    )
    _write(rows, arguments.json)
    return 1 if failed else 0


def _write(rows: Sequence[Row], file: str | None) -> None:
    if file:
        described = [dataclasses.asdict(row) | {"passes": row.passes} for row in rows]
        write_json(Path(file), described, indent=1)
