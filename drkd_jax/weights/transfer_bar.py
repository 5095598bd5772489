"""How far a transfer is: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

_QUIET = 20.0  # seconds between two lines where no bar can be drawn


class TransferBar:
    """Counts the bytes of one file on stderr, with their rate and the time that is left.

    Args:
        name: of the file.
        start: bytes that were there before.
        total: bytes of the whole file; None: unknown.
    """

    def __init__(self, name: str, start: int, total: int | None):
        self._name, self._start, self._done, self._total = name, start, start, total
        self._begun = self._told = time.monotonic()
        self._lines = not sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=start,
            desc=name,
            unit="B",
            unit_scale=True,
            disable=self._lines,
            dynamic_ncols=True,
        )
        if self._lines:
            size = f" ({total / 1e6:.1f} MB)" if total else ""
            print(f"fetching {name}{size}{self._from()}", file=sys.stderr, flush=True)

    def more(self, count: int) -> None:
        """So many bytes have come."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._lines and now - self._told > _QUIET:
            self._told = now
            rate = (self._done - self._start) / (now - self._begun)
            left = f", about {(self._total - self._done) / rate:.0f} s left" if self._total else ""
            print(
                f"{self._name}: {self._done / 1e6:.1f} MB, {rate / 1e6:.2f} MB/s{left}",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> TransferBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def _from(self) -> str:
        return f", from {self._start / 1e6:.1f} MB on" if self._start else ""
