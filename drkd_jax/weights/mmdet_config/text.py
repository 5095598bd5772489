"""Reads a library's config text as data: assignments of plain values, without running code.

mmdetection stores the whole text of a training's config in its checkpoints. It is Python, so it is
parsed (`ast`) and evaluated for literals only: numbers, strings, lists, tuples, dicts, `dict(...)`,
names assigned before, sums and products of numbers. Anything else becomes `Unread` with its text,
so that a reader who needs the value can refuse it by name.

Source: open-mmlab/mmengine mmengine/config/config.py (how base files override one another).
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from drkd_jax.weights.mmdet_config.values import HUGE, Unread, laid_over, size_of

LONGEST = 1 << 20  # characters; a detector's config has some ten thousand
_MOST = 10_000  # items of a list that a product makes, characters or items of a sum
_DEEPEST = 60  # levels of nested values
_WORK = 2_000_000  # values that may be read, copied or inspected for one text
_STATEMENT = 20  # the share of that which every statement costs at least


class ConfigTextError(ValueError):
    """The text as a whole is not a config."""


class _TooMuchError(Exception):
    """A text would take unlimited time or memory; not a `ValueError`, which single values raise."""


def read_config_text(text: str) -> dict[str, Any]:
    """The values of a config, by name.

    Args:
        text: Python assignments (of one file, or of a file after its base files), or one JSON or
            Python dict.

    Returns:
        Plain values; `Unread` for all others.

    Raises:
        ConfigTextError: it is neither; the message gives the line.
    """
    if len(text) > LONGEST:
        raise ConfigTextError(f"{len(text)} characters, which no config has")
    # Each base file is preceded by a line with its path.
    text = re.sub(r"(?m)^\S+\.py[ \t]*$", "", text.replace("\r\n", "\n"))
    try:
        return _one_dict(text.strip()) if text.lstrip().startswith("{") else _assignments(text)
    except _TooMuchError as error:
        raise ConfigTextError(f"more than {_WORK} values, which no config has") from error
    except (RecursionError, MemoryError) as error:
        raise ConfigTextError("nested deeper than any config") from error


def _assignments(text: str) -> dict[str, Any]:
    reader = _Reader(bool(re.search(r"(?m)^_base_\s*=|\bread_base\(", text)))
    try:
        reader.run(text)
    except (SyntaxError, ValueError) as error:
        reader.run_parts(text)
        if not reader.names:
            raise ConfigTextError(f"no Python ({error})") from error
    return _printable(reader, reader.names)


def _one_dict(text: str) -> dict[str, Any]:
    reader = _Reader(False)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = reader.expression(text)
        except (SyntaxError, ValueError) as error:
            raise ConfigTextError(f"neither JSON nor Python ({error})") from error
    if not isinstance(value, dict):
        raise ConfigTextError("no dict")
    return _printable(reader, value)


def _printable(reader: _Reader, values: dict[Any, Any]) -> dict[str, Any]:
    """The values that are small enough; a dict may have grown inside others."""
    return {
        name: Unread("...") if reader.is_huge((name, value)) else value
        for name, value in values.items()
    }


class _Reader:
    def __init__(self, merges: bool):
        self.names: dict[str, Any] = {}
        self.merges = merges  # whether a dict assigned again overrides the earlier one key by key
        self.depth = 0
        self.lines: list[bytes] = []
        self.left = _WORK

    def run(self, text: str) -> None:
        tree, self.lines = ast.parse(text), text.encode().split(b"\n")
        for statement in tree.body:
            self._pay(_STATEMENT)
            self._statement(statement)
            for name in set(_named(statement)) & self.names.keys():
                if self.is_huge(self.names[name]):
                    self.names[name] = self._unread(statement)

    def is_huge(self, value: Any) -> bool:
        """Whether a value is infinite, or far too long to be printed."""
        size, looked_at = size_of(value)
        self._pay(looked_at)
        return size > HUGE

    def run_parts(self, text: str) -> None:
        """Reads the text statement by statement, if it cannot be parsed as a whole."""
        for part in re.split(r"(?m)^(?=[A-Za-z_])", text):
            self._pay(_STATEMENT)
            try:
                self.run(part)
            except (SyntaxError, ValueError):
                if found := re.match(r"(\w+)\s*=", part):
                    self.names[found[1]] = Unread(part.split("\n")[0][:80])

    def expression(self, text: str) -> Any:
        """The value of a text that is one expression."""
        self.lines = text.encode().split(b"\n")
        return self.value(ast.parse(text, mode="eval").body)

    def _pay(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise _TooMuchError

    def _unread(self, node: ast.expr | ast.stmt) -> Unread:
        """The first line of the expression; unparsing a whole tree may take very long."""
        line = self.lines[node.lineno - 1] if node.lineno <= len(self.lines) else b"..."
        end = node.end_col_offset if node.end_lineno == node.lineno else None
        return Unread(line[node.col_offset : end][:80].decode("utf-8", "ignore"))

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign):
            value = self.value(node.value)
            for target in node.targets:
                self._assign(target, value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._assign(node.target, self.value(node.value))
        elif isinstance(node, ast.With):
            for inner in node.body:
                self._statement(inner)
        elif isinstance(node, ast.Delete):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    self.names.pop(target.id, None)
        elif isinstance(node, ast.Expr):
            self._update(node.value)
        elif not isinstance(node, (ast.Import, ast.ImportFrom, ast.Pass)):
            for name in _named(node, ast.Store):
                self.names[name] = self._unread(node)

    def _assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            old = self.names.get(target.id)
            if self.merges and isinstance(value, dict) and isinstance(old, dict):
                self._pay(size_of(old)[1] + size_of(value)[1])
                value = laid_over(old, value)
            self.names[target.id] = value
            return
        path = _path(target)
        if path is None:
            for name in _named(target, ast.Store):
                self.names[name] = self._unread(target)
            return
        place: Any = self.names
        for part in path[:-1]:
            place = place.get(part) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[path[-1]] = value

    def _update(self, node: ast.expr) -> None:
        """Executes `model.update(...)` and `model["neck"].update(...)`."""
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            return
        place = self.value(node.func.value)
        if isinstance(place, dict) and node.func.attr == "update":
            news = self._dict(node)
            if isinstance(news, dict):
                place.update(self._copied(news))
                return
        if isinstance(place, dict):
            for name in _named(node.func.value):
                self.names[name] = self._unread(node)

    def value(self, node: ast.expr) -> Any:
        """The plain value of an expression, or `Unread`."""
        self._pay(1)
        self.depth += 1
        try:
            found = self._value(node) if self.depth <= _DEEPEST else Unread("...")
        except (ArithmeticError, LookupError, TypeError, ValueError):
            found = self._unread(node)
        finally:
            self.depth -= 1
        return found

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and not isinstance(node.value, (bytes, complex)):
            if node.value is not Ellipsis:
                return node.value
        elif isinstance(node, (ast.List, ast.Tuple)):
            items: list[Any] = []
            for item in node.elts:
                if isinstance(item, ast.Starred):
                    items.extend(self._copied(self.value(item.value)))
                else:
                    items.append(self.value(item))
            return items if isinstance(node, ast.List) else tuple(items)
        elif isinstance(node, ast.Dict):
            return self._braces(node)
        elif isinstance(node, ast.Set) and len(node.elts) == 1:
            return self.value(node.elts[0])  # {{_base_.name}}
        elif isinstance(node, ast.Name) and node.id in self.names:
            return self.names[node.id]
        elif isinstance(node, ast.Call):
            return self._call(node)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
            value = self.value(node.operand)
            if isinstance(value, (bool, int, float)):
                return -value if isinstance(node.op, ast.USub) else not value
        elif isinstance(node, ast.BinOp):
            return self._sum(node)
        elif isinstance(node, ast.Subscript):
            place, key = self.value(node.value), self.value(node.slice)
            if isinstance(place, (dict, list, tuple)) and isinstance(key, (str, int)):
                return place[key]  # type: ignore[index]
        elif isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "_base_":
                return self.names[node.attr]
            place = self.value(node.value)
            if isinstance(place, dict):
                return place[node.attr]
        return self._unread(node)

    def _copied(self, value: Any) -> Any:
        """Counts the work for a value whose items are about to be copied."""
        self._pay(len(value))
        return value

    def _braces(self, node: ast.Dict) -> Any:
        found: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                found.update(self._copied(self.value(value)))
            else:
                found[self.value(key)] = self.value(value)
        return found

    def _call(self, node: ast.Call) -> Any:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in ("dict", "ConfigDict", "Config"):
            return self._dict(node)
        if len(node.args) == 1 and not node.keywords:
            value = self.value(node.args[0])
            if name in ("list", "tuple") and isinstance(value, (list, tuple)):
                self._copied(value)
                return list(value) if name == "list" else tuple(value)
            if name == "float" and isinstance(value, (int, float, str)):
                return float(value)
            if name == "int" and isinstance(value, (int, float)):
                return int(value)
        return self._unread(node)

    def _dict(self, node: ast.Call) -> Any:
        found: dict[Any, Any] = {}
        for argument in node.args:
            found.update(self._copied(self.value(argument)))
        for keyword in node.keywords:
            value = self.value(keyword.value)
            if keyword.arg is None:
                found.update(self._copied(value))
            else:
                found[keyword.arg] = value
        return found

    def _sum(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        for kinds in ((int, float), (str,), (list,), (tuple,)):
            fit = isinstance(node.op, ast.Add) and all(isinstance(x, kinds) for x in (left, right))
            if fit and (kinds == (int, float) or len(left) + len(right) <= _MOST):
                self._pay(0 if kinds == (int, float) else len(left) + len(right))
                return left + right
        numbers = all(isinstance(x, (int, float)) for x in (left, right))
        if isinstance(node.op, ast.Mult):
            if numbers:
                return left * right
            rows = isinstance(left, (list, tuple)) and isinstance(right, int)
            if rows and len(left) * right <= _MOST:
                self._pay(max(len(left) * right, 0))
                return left * right
        elif isinstance(node.op, ast.Sub) and numbers:
            return left - right
        elif isinstance(node.op, ast.Div) and numbers:
            return left / right
        elif isinstance(node.op, ast.FloorDiv) and numbers:
            return left // right
        elif isinstance(node.op, ast.Pow) and numbers and abs(left) <= 1e4 and abs(right) <= 32:
            return left**right
        return self._unread(node)


def _path(target: ast.expr) -> list[Any] | None:
    """Names and keys of a target like `model["neck"].num_outs`; None for anything else."""
    parts: list[Any] = []
    while not isinstance(target, ast.Name):
        if isinstance(target, ast.Attribute):
            parts.append(target.attr)
        elif isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
            parts.append(target.slice.value)
        else:
            return None
        target = target.value
    return [target.id, *reversed(parts)]


def _named(node: ast.AST, how: type[ast.expr_context] = ast.expr_context) -> list[str]:
    """The names in an expression, or only those with one context."""
    found = (inner for inner in ast.walk(node) if isinstance(inner, ast.Name))
    return [name.id for name in found if isinstance(name.ctx, how)]
