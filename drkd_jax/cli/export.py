"""``python -m drkd_jax export``: the student alone, without optimiser, distiller and data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drkd_jax.cli.arguments import Parser
from drkd_jax.errors import UserError
from drkd_jax.training.student_file import student_arrays, write_orbax
from drkd_jax.training.writing import make_place
from drkd_jax.weights.ours import write_ours


def main(argv: Sequence[str]) -> int:
    """Writes the student of a run: a safetensors file of ours, or an orbax folder.

    Raises:
        UserError: wrong arguments, no checkpoint, or a place that cannot be written.
    """
    parser = Parser("export", "The student of a run alone, by our names.")
    parser.add_argument("--workdir", required=True, help="work folder of a training run")
    parser.add_argument("--which", default="best", choices=("best", "last"), help="checkpoint")
    parser.add_argument("--format", required=True, choices=("orbax", "safetensors"))
    parser.add_argument("out", metavar="OUT", help="NAME.safetensors, or a folder for orbax")
    arguments = parser.parse_args(list(argv))
    out = Path(arguments.out)
    if arguments.format == "safetensors" and out.suffix != ".safetensors":
        raise UserError(f"{out}: the name has to end in .safetensors")
    if arguments.format == "orbax" and out.exists():
        raise UserError(f"{out}: is there already; name another folder")
    make_place(out)
    arrays, about = student_arrays(arguments.workdir, arguments.which)
    if arguments.format == "safetensors":
        write_ours(out, arrays, about)
    else:
        write_orbax(out, arrays, about)
    print(f"{len(arrays)} arrays of step {about.source['step']}, written to {out}")
    return 0
