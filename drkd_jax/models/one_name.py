"""`models`, the link at the top of a checkout, is `drkd_jax.models` and no second copy of it.

A file that Python imports under two names makes two sets of classes: `isinstance` and nnx's filters
would then pass over what the other name made, without a word.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

REAL = "drkd_jax.models"


class _SameModules(MetaPathFinder, Loader):
    """Answers for every module below a link with the real one."""

    def __init__(self, link: str):
        self._link = link

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        below = fullname.startswith(f"{self._link}.")
        return ModuleSpec(fullname, self) if below else None

    def exec_module(self, module: ModuleType) -> None:
        # Python takes what stands in sys.modules afterwards.
        real = REAL + module.__name__.removeprefix(self._link)
        try:
            sys.modules[module.__name__] = import_module(real)
        except ModuleNotFoundError as error:
            if error.name != real:
                raise
            raise ModuleNotFoundError(
                f"No module named {module.__name__!r}", name=module.__name__
            ) from None


def become_one(link: str) -> None:
    """Puts the real package and its modules in the place of those under another name.

    Args:
        link: that name; its ``__init__`` calls this while it is imported.
    """
    sys.meta_path.insert(0, _SameModules(link))
    sys.modules[link] = import_module(REAL)
