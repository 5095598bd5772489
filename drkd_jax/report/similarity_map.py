"""Similarities of a map's pixels, laid over a picture.

Letters: H W pixels of the picture, h w one map.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import Normalize


def overlay(
    ax: Any, picture: UInt8[np.ndarray, "H W 3"], values: Float[np.ndarray, "_ _"], stride: int
) -> Any:
    """Lays a map's similarities, from -1 to 1, over a picture that is shown.

    Args:
        ax: matplotlib's axes.
        picture: as it is shown.
        values: ``[h, w]``.
        stride: pixels of the picture from one map pixel to the next.

    Returns:
        matplotlib's image, for a colour bar.
    """
    (height, width), (down, across) = picture.shape[:2], values.shape
    drawn = ax.imshow(
        values,
        cmap="coolwarm",
        norm=Normalize(-1, 1),
        alpha=0.8,
        interpolation="nearest",
        extent=(-0.5, across * stride - 0.5, down * stride - 0.5, -0.5),
    )
    ax.set_xlim(-0.5, width - 0.5)
    ax.set_ylim(height - 0.5, -0.5)
    return drawn
