"""HTML that is escaped unless it was made here, and its style sheet.

Class names, paths and settings come from untrusted files. Plain text put into an element is always
escaped; only the results of ``tag`` are inserted unchanged, so escaping cannot be forgotten.

The sheet is light or dark by the reader's setting, with one column on a phone. The six line colours
are distinguishable with the common kinds of colour blindness (after Okabe and Ito), and lighter on
the dark background.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_VOID = frozenset({"img", "input", "meta", "br"})


class Html(str):
    """Markup that is safe to insert unchanged."""

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
    # Users without a mouse scroll with the arrow keys, which needs a focusable element.
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


_LIGHT = ("#0060a8", "#c24a00", "#007a5c", "#a4487f", "#8a6500", "#4d5360")
_DARK = ("#6fc3f7", "#ff9a57", "#3fd6a8", "#f0a3cf", "#f2c94c", "#b8bfca")

_SHEET = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1d2129; --soft: #545b68; --line: #d7dbe2;
  --panel: #f4f6f9; --accent: #0060a8; --on-accent: #fff; --alarm: #9a3412; LIGHT }
@media (prefers-color-scheme: dark) { :root { --ground: #14171c; --ink: #e7eaf0; --soft: #a7aeba;
  --line: #363c47; --panel: #1e232b; --accent: #6fc3f7; --on-accent: #10202c; --alarm: #ffb38a;
  DARK } }
* { box-sizing: border-box; }
html { background: var(--ground); color: var(--ink); -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem 1rem 4rem; line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.5rem; padding-top: 0.5rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 0.5rem; overflow-wrap: anywhere; }
p { max-width: 46rem; margin: 0.5rem 0; overflow-wrap: anywhere; }
small { color: var(--soft); font-size: 0.82em; font-weight: normal; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; margin: 0.75rem 0; }
nav a { padding: 0.25rem 0; }
.verdict { background: var(--panel); border-left: 4px solid var(--accent); padding: 0.6rem 1rem;
  margin: 1rem 0; max-width: 50rem; }
.warning { color: var(--alarm); }
.side { display: flex; flex-wrap: wrap; gap: 0 3.5rem; align-items: flex-start; }
.wide { max-width: 100%; overflow-x: auto; margin: 0.75rem 0 1.25rem; }
table { border-collapse: collapse; font-size: 0.92rem; }
caption { text-align: left; font-weight: 600; padding: 0.25rem 0; }
th, td { padding: 0.3rem 0.75rem 0.3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); font-weight: normal; min-width: 4.5rem;
  max-width: 22rem; overflow-wrap: anywhere; }
thead th { font-weight: 600; border-bottom: 2px solid var(--line); }
tbody th { overflow-wrap: break-word; }
.numbers th:not(:first-child), .numbers td { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums;
  padding: 0.3rem 0 0.3rem 0.9rem; }
.between { white-space: nowrap; }
details summary { cursor: pointer; }
pre { font-size: 0.8rem; white-space: pre-wrap; margin: 0.25rem 0; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; padding: 0;
  margin: 0.5rem 0; font-size: 0.9rem; }
.legend li { display: flex; align-items: center; gap: 0.4rem; }
.swatch { width: 32px; height: 12px; flex: none; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.charts { display: grid; gap: 1rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.charts figure { margin: 0; max-width: 34rem; }
.charts svg:not(.swatch) { width: 100%; height: auto; display: block; }
.charts figcaption { font-size: 0.9rem; font-weight: 600; min-height: 2.8em; }
.charts text { fill: var(--soft); font-size: 12px; }
.charts .x { text-anchor: middle; }
.charts .y { text-anchor: end; }
.grid { stroke: var(--line); stroke-width: 1; }
.scenes { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.scene { border: 0; margin: 0; padding: 0; min-width: 0; }
.scene legend { padding: 0 0 0.3rem; font-size: 0.92rem; overflow-wrap: anywhere; }
.scene > input { position: absolute; opacity: 0; pointer-events: none; }
.tabs { display: flex; flex-wrap: wrap; gap: 0.3rem; margin-bottom: 0.4rem; }
.tabs label { border: 1px solid var(--line); border-radius: 0.4rem; padding: 0.3rem 0.6rem;
  font-size: 0.85rem; cursor: pointer; background: var(--panel); overflow-wrap: anywhere; }
.frame { position: relative; line-height: 0; overflow: hidden; border-radius: 0.4rem; }
.frame img { width: 100%; height: auto; }
.frame > svg { position: absolute; inset: 0; width: 100%; height: 100%; display: none; }
.frame path { fill: none; vector-effect: non-scaling-stroke; stroke-width: 2; }
.frame path:first-of-type { stroke: #000; stroke-width: 4; stroke-opacity: 0.55; }
.frame text { font-family: inherit; stroke: #000; stroke-width: 0.25em; paint-order: stroke;
  stroke-linejoin: round; }
.right path:last-of-type { stroke: #56c8ff; } .right text { fill: #bfe9ff; }
.wrong path:last-of-type { stroke: #ff9a2e; stroke-dasharray: 6 3; } .wrong text { fill: #ffd6a1; }
.missed path:last-of-type { stroke: #fff; stroke-dasharray: 2 3; }
.marks label { position: absolute; transform: translate(-50%, -50%); width: 2rem; height: 2rem;
  border-radius: 50%; border: 2px solid #fff; background: #14171ccc; color: #fff; cursor: pointer;
  font: 600 0.9rem/1.75rem system-ui, sans-serif; text-align: center; }
.pick { display: grid; gap: 1rem; max-width: 60rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.pick legend { grid-column: 1 / -1; }
.pick .frame { align-self: start; }
.views > div { display: none; grid-template-columns: 1fr 1fr; gap: 0.5rem; }
.views figure { margin: 0; }
.views figcaption { font-size: 0.85rem; }
.views img { width: 100%; height: auto; image-rendering: pixelated; border-radius: 0.25rem; }
.scale { display: inline-block; width: 8rem; height: 0.8rem; vertical-align: middle;
  background: linear-gradient(90deg, #3b4cc0, #8db0fe, #dddddd, #f49a7b, #b40426); }
.small { font-size: 0.9rem; color: var(--soft); }
.key { display: inline-block; width: 1.6rem; height: 1rem; background: #5a606b; border: 2px solid; }
.key.right { border-color: #56c8ff; } .key.wrong { border: 2px dashed #ff9a2e; }
.key.missed { border: 2px dotted #fff; }
@media (max-width: 34rem) { body { padding: 0.75rem 0.75rem 3rem; }
  .numbers .between { display: block; }
  table:not(.numbers) td { min-width: 6.5rem; }
  .numbers th:not(:first-child), .numbers td { padding-left: 0.5rem; } }
@media print { .tabs, nav { display: none; } .scene { break-inside: avoid; } }
"""


def style_sheet(views: int) -> str:
    """The whole sheet.

    Args:
        views: The most layers of an image.
    """
    sheet = _SHEET.replace("LIGHT", _palette(_LIGHT)).replace("DARK", _palette(_DARK))
    for i in range(1, views + 1):
        checked = f".scene > input:nth-of-type({i})"
        sheet += (
            f"{checked}:checked ~ .frame > svg:nth-of-type({i}) {{ display: block; }}\n"
            f"{checked}:checked ~ .views > div:nth-of-type({i}) {{ display: grid; }}\n"
            f"{checked}:checked ~ .marks > label:nth-of-type({i}) {{ background: #ffe600;"
            " color: #000; border-color: #000; }\n"
            f"{checked}:checked ~ .tabs > label:nth-of-type({i}) {{ background: var(--accent);"
            " color: var(--on-accent); border-color: var(--accent); }\n"
            f"{checked}:focus-visible ~ div > label:nth-of-type({i}) {{"
            " outline: 2px solid var(--ink); outline-offset: 2px; }\n"
        )
    return sheet


def _palette(colours: tuple[str, ...]) -> str:
    return " ".join(f"--c{i}: {colour};" for i, colour in enumerate(colours))
