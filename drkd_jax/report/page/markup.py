"""HTML that is escaped unless it was made here.

Class names, paths and settings come from files of other people. A plain text that is put into an
element is escaped; only what ``tag`` returned goes in as it is, so there is no place to forget it.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_VOID = frozenset({"img", "input", "meta", "br"})


class Html(str):
    """Markup that is safe as it stands."""

    __slots__ = ()


Child = str | int | None | Iterable["Child"]


def tag(name: str, /, *children: Child, **attributes: object) -> Html:
    """An element.

    Args:
        name: Of the element.
        children: Texts (escaped), `Html` (as it is), numbers, lists of these; None is left out.
        attributes: `class_` is "class" and `stroke_width` is "stroke-width". True is an attribute
            without a value; None and False leave it out.
    """
    opening = name
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        opening += f" {key.rstrip('_').replace('_', '-')}"
        if value is not True:
            opening += f'="{html.escape(str(value))}"'
    if name in _VOID:
        return Html(f"<{opening}>")
    return Html(f"<{opening}>{join(*children)}</{name}>")


def join(*children: Child) -> Html:
    """What stands in an element, without the element."""
    return Html("".join(_parts(children)))


def table(
    caption: str,
    head: Sequence[Child],
    rows: Iterable[Sequence[Child]],
    *,
    class_: str | None = None,
) -> Html:
    """A table whose first row and first column are headings; a narrow screen scrolls it sideways.

    Args:
        caption: What it shows.
        head: Headings of the columns, that of the first column among them.
        rows: Each begins with its heading.
        class_: For the style sheet.
    """
    body = [
        tag("tr", tag("th", row[0], scope="row"), [tag("td", cell) for cell in row[1:]])
        for row in rows
    ]
    top = tag("tr", [tag("th", cell, scope="col") for cell in head])
    whole = tag(
        "table", tag("caption", caption), tag("thead", top), tag("tbody", body), class_=class_
    )
    # Who has no mouse scrolls with the arrow keys, which needs a place for the focus.
    return tag("div", whole, class_="wide", tabindex=0, role="region", aria_label=caption)


def _parts(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            yield child
        elif isinstance(child, str | int):
            yield html.escape(str(child))
        else:
            yield from _parts(child)
