"""The one kind of variable that no optimiser moves, in detectors and distillers alike."""

from __future__ import annotations

from flax import nnx


class Frozen(nnx.Variable):
    """Random filters, teachers' modules, running scales, constant statistics of batch norms.

    It is no `nnx.Param`, so `nnx.Optimizer(..., wrt=nnx.Param)` leaves it alone without being told.
    """
