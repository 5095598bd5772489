"""The kind of variable that no optimiser updates, in detectors and distillers alike."""

from __future__ import annotations

from flax import nnx


class Frozen(nnx.Variable):
    """Random filters, teachers' modules, running scales, constant statistics of batch norms.

    It is not an `nnx.Param`, so `nnx.Optimizer(..., wrt=nnx.Param)` does not update it.
    """
