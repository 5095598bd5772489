"""``python -m drkd_jax report``: finished runs beside each other, in one HTML file."""

from __future__ import annotations

from collections.abc import Sequence

from drkd_jax.cli.arguments import Parser
from drkd_jax.errors import UserError
from drkd_jax.training.writing import make_place, write_text


def main(argv: Sequence[str]) -> int:
    """Writes `report.html`.

    Args:
        argv: The arguments after ``report``.

    Returns:
        The exit code.

    Raises:
        UserError: An argument or a work folder is at fault.
    """
    parser = Parser(
        "report",
        "Compares finished runs in one HTML file that needs no network and no script.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[NAME=]WORKDIR",
        help="work folders of train.py, with names for the report if you like",
    )
    parser.add_argument(
        "--reference", help="name of the run that others are compared with (default: the first)"
    )
    parser.add_argument(
        "--relations",
        metavar="NAME",
        help="distilled run whose relation maps are shown; its checkpoint and teacher are loaded",
    )
    parser.add_argument("--title", default="DRKD report", help="heading of the page")
    parser.add_argument("--out", default="report.html", help="file to write")
    arguments = parser.parse_args(list(argv))
    from drkd_jax.report.page.runs import named_folders, read_runs
    from drkd_jax.report.page.seen import seen
    from drkd_jax.report.page.write import page

    out = make_place(arguments.out, "--out")
    named = named_folders(arguments.runs)
    names = [name for name, _ in named]
    reference = arguments.reference or names[0]
    for flag, name in (("--reference", reference), ("--relations", arguments.relations)):
        if name is not None and name not in names:
            raise UserError(f"{flag}={name}: no such run; there are {', '.join(names)}")
    runs = read_runs(named)
    relations = seen(runs[names.index(arguments.relations)]) if arguments.relations else None
    text = page(runs, names.index(reference), title=arguments.title, relations=relations)
    write_text(out, text)
    print(f"{out}: {len(names)} runs, {len(text.encode()) / 1e6:.1f} MB")
    return 0
