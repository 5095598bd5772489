"""The evaluations of a run: when one is due, which was the best, and when enough is enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from drkd_jax.training.settings import TrainSettings

Numbers = dict[str, float]


@dataclasses.dataclass
class Scores:
    """What was scored so far; every process of a run holds the same.

    After a kill it is made again from `metrics.jsonl` and the best checkpoint. That one may be of a
    later step than the run goes on from: what is scored until then has no say.

    Attributes:
        train: settings of the run.
        steps: its length.
        done: step and numbers of each evaluation, in order.
        best: of the best checkpoint.
    """

    train: TrainSettings
    steps: int
    done: list[tuple[int, Numbers]]
    best: tuple[int, Numbers] | None

    def due(self, step: int) -> bool:
        """Whether an evaluation belongs after this step, and is not done yet."""
        every = self.train.eval_every
        due = step == self.steps or (every > 0 and step % every == 0)
        return due and step not in [of for of, _ in self.done[-1:]]

    def is_better(self, numbers: Numbers) -> bool:
        """Whether the AP is higher than that of the best checkpoint."""
        return self.best is None or numbers["AP"] > self.best[1]["AP"]

    def why_over(self) -> str:
        """Why the run ends before its last step, in words; "" where it goes on."""
        patience = self.train.early_stop
        if not patience or self.best is None or not self.done:
            return ""
        last, best = self.done[-1][0], self.best[0]
        vain = sum(step > best for step, _ in self.done)
        if vain < patience or last >= self.steps:
            return ""
        return (
            f"stopped early at step {last} of {self.steps}: no better AP in {vain} evaluations "
            f"since step {best} (config.train.early_stop = {patience})"
        )


def as_pairs(found: Sequence[Sequence]) -> list[tuple[int, Numbers]]:
    """Step and numbers of each evaluation, from JSON's lists."""
    return [(int(step), dict(numbers)) for step, numbers in found]
