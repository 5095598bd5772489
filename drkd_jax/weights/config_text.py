"""A library's config text read as data: assignments of plain values, and nothing is run.

mmdetection stores the whole text of a training's config in its checkpoints. It is Python, so it is
parsed (`ast`) and its literals are taken: numbers, strings, lists, tuples, dicts, `dict(...)`,
names assigned before, sums and products of numbers. Whatever else stands there becomes `Unread`
with its text, so that who needs the value can refuse it by name.

Source: open-mmlab/mmengine mmengine/config/config.py (how base files are laid over one another).
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

LONGEST = 1 << 22  # characters; a detector's config has some ten thousand
_MOST = 10_000  # items of a list that a product makes, characters or items of a sum
_DEEPEST = 60  # nested values
_HUGE = 100_000  # values of one name, when written out


@dataclasses.dataclass(frozen=True)
class Unread:
    """An expression that is no plain value."""

    text: str

    def __repr__(self) -> str:
        return self.text


class ConfigTextError(ValueError):
    """The text as a whole is no config."""


def read_config_text(text: str) -> dict[str, Any]:
    """The values of a config, by name.

    Args:
        text: Python assignments (of one file, or of a file behind those that it is based on), or
            one JSON or Python dict.

    Returns:
        Plain values; `Unread` where there is none.

    Raises:
        ConfigTextError: it is neither, with the line.
    """
    if len(text) > LONGEST:
        raise ConfigTextError(f"{len(text)} characters, which no config has")
    # Base files come with a line of their own path before each.
    text = re.sub(r"(?m)^\S+\.py[ \t]*$", "", text.replace("\r\n", "\n"))
    if text.lstrip().startswith("{"):
        return _one_dict(text.strip())
    try:
        reader = _Reader(bool(re.search(r"(?m)^_base_\s*=|\bread_base\(", text)))
        try:
            reader.run(ast.parse(text))
        except (SyntaxError, ValueError) as error:
            reader.run_parts(text)
            if not reader.names:
                raise ConfigTextError(f"no Python ({error})") from error
    except (RecursionError, MemoryError) as error:
        raise ConfigTextError("nested deeper than any config") from error
    return reader.names


def _one_dict(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = _Reader(False).value(ast.parse(text, mode="eval").body)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ConfigTextError(f"neither JSON nor Python ({error})") from error
    if not isinstance(value, dict):
        raise ConfigTextError("no dict")
    return value


class _Reader:
    def __init__(self, merges: bool):
        self.names: dict[str, Any] = {}
        self.merges = merges  # whether a dict assigned again is laid over the earlier one
        self.depth = 0

    def run(self, tree: ast.Module) -> None:
        for statement in tree.body:
            self._statement(statement)
            for name in set(_named(statement)) & self.names.keys():
                if _is_huge(self.names[name]):
                    self.names[name] = Unread(ast.unparse(statement).split("\n")[0][:80])

    def run_parts(self, text: str) -> None:
        """Statement by statement, where the whole cannot be parsed."""
        for part in re.split(r"(?m)^(?=[A-Za-z_])", text):
            try:
                self.run(ast.parse(part))
            except (SyntaxError, ValueError):
                if found := re.match(r"(\w+)\s*=", part):
                    self.names[found[1]] = Unread(part.split("\n")[0][:80])

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
            for name in _stored(node):
                self.names[name] = Unread(ast.unparse(node).split("\n")[0][:80])

    def _assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            old = self.names.get(target.id)
            if self.merges and isinstance(value, dict) and isinstance(old, dict):
                value = _laid_over(old, value)
            self.names[target.id] = value
            return
        path = _path(target)
        if path is None:
            for name in _stored(target):
                self.names[name] = Unread(ast.unparse(target)[:80])
            return
        place: Any = self.names
        for part in path[:-1]:
            place = place.get(part) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[path[-1]] = value

    def _update(self, node: ast.expr) -> None:
        """`model.update(...)` and `model["neck"].update(...)`."""
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            return
        place = self.value(node.func.value)
        if isinstance(place, dict) and node.func.attr == "update":
            news = self._dict(node)
            if isinstance(news, dict):
                place.update(news)
                return
        if isinstance(place, dict):
            for name in _named(node.func.value):
                self.names[name] = Unread(ast.unparse(node)[:80])

    def value(self, node: ast.expr) -> Any:
        """The plain value of an expression, or `Unread`."""
        self.depth += 1
        try:
            found = self._value(node) if self.depth <= _DEEPEST else Unread("...")
        except (ArithmeticError, LookupError, TypeError, ValueError):
            found = Unread(ast.unparse(node)[:80])
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
                    items.extend(self.value(item.value))
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
        return Unread(ast.unparse(node)[:80])

    def _braces(self, node: ast.Dict) -> Any:
        found: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                found.update(self.value(value))
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
                return list(value) if name == "list" else tuple(value)
            if name == "float" and isinstance(value, (int, float, str)):
                return float(value)
            if name == "int" and isinstance(value, (int, float)):
                return int(value)
        return Unread(ast.unparse(node)[:80])

    def _dict(self, node: ast.Call) -> Any:
        found: dict[Any, Any] = {}
        for argument in node.args:
            found.update(self.value(argument))
        for keyword in node.keywords:
            value = self.value(keyword.value)
            if keyword.arg is None:
                found.update(value)
            else:
                found[keyword.arg] = value
        return found

    def _sum(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        for kinds in ((int, float), (str,), (list,), (tuple,)):
            fit = isinstance(node.op, ast.Add) and all(isinstance(x, kinds) for x in (left, right))
            if fit and (kinds == (int, float) or len(left) + len(right) <= _MOST):
                return left + right
        numbers = all(isinstance(x, (int, float)) for x in (left, right))
        if isinstance(node.op, ast.Mult):
            if numbers:
                return left * right
            rows = isinstance(left, (list, tuple)) and isinstance(right, int)
            if rows and len(left) * right <= _MOST:
                return left * right
        elif isinstance(node.op, ast.Sub) and numbers:
            return left - right
        elif isinstance(node.op, ast.Div) and numbers:
            return left / right
        elif isinstance(node.op, ast.FloorDiv) and numbers:
            return left // right
        elif isinstance(node.op, ast.Pow) and numbers and abs(left) <= 1e4 and abs(right) <= 32:
            return left**right
        return Unread(ast.unparse(node)[:80])


def _laid_over(base: Mapping[Any, Any], over: Mapping[Any, Any]) -> dict[Any, Any]:
    """A dict of a config laid over that of its base file, as mmengine does."""
    merged = {} if over.get("_delete_") is True else dict(base)
    for key, value in over.items():
        if key == "_delete_":
            continue
        old = merged.get(key)
        merged[key] = (
            _laid_over(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
        )
    return merged


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


def _is_huge(value: Any) -> bool:
    """Whether it holds itself, or more than any config says when written out.

    A list of two of the list before, sixty lines long, is short to read and endless to print.
    """
    sizes: dict[int, float] = {}

    def size(item: Any) -> float:
        if isinstance(item, int):
            return 1.0 if item.bit_length() <= 64 else math.inf
        if isinstance(item, str):
            return 1 + len(item) / 100
        if not isinstance(item, (dict, list, tuple)):
            return 1.0
        if id(item) not in sizes:
            sizes[id(item)] = math.inf  # what is met again inside itself
            parts = [*item.keys(), *item.values()] if isinstance(item, dict) else item
            sizes[id(item)] = sum(map(size, parts), 1.0)
        return sizes[id(item)]

    return size(value) > _HUGE


def _named(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            yield inner.id


def _stored(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            yield inner.id
