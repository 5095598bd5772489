"""Makes `models`, the link at the top of a checkout, the same module as `drkd_jax.models`.

If Python imports a file under two names, its classes exist twice: `isinstance` and nnx's filters
would then silently ignore objects created under the other name.
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
    """Resolves every module below a link to the real one."""

    def __init__(self, link: str):
        self._link = link

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        below = fullname.startswith(f"{self._link}.")
        return ModuleSpec(fullname, self) if below else None

    def exec_module(self, module: ModuleType) -> None:
        # Python uses the entry of sys.modules after this.
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
    """Makes another name refer to the real package and its modules.

    Args:
        link: the other name; its ``__init__`` calls this while it is imported.
    """
    sys.meta_path.insert(0, _SameModules(link))
    sys.modules[link] = import_module(REAL)
