"""A front as a picture: a plane for two objectives, space for three, parallel axes for more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from paretune.errors import InputError


def plot_front(
    points: ArrayLike,
    names: Sequence[str] | None = None,
    kept: Sequence[bool] | None = None,
    ax: Any = None,
) -> Any:
    """Draw points (n, M), M >= 2, with matplotlib.

    Args:
        points: F of each point, to be minimised.
        names: of the objectives; f1, f2, … without.
        kept: which points count; the others are drawn hollow or pale. None for all.
        ax: axes to draw on, for M = 3 with projection="3d"; new ones without.

    Returns:
        The axes: `ax.figure.savefig("front.png")`.

    Raises InputError for shapes that do not fit.
    """
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] < 2 or len(array) == 0:
        raise InputError(f"A picture needs points of shape (n, M) with M >= 2, got {array.shape}.")
    size = array.shape[1]
    labels = [f"f{m}" for m in range(1, size + 1)] if names is None else list(names)
    shown = np.ones(len(array), bool) if kept is None else np.asarray(kept, dtype=bool)
    if len(labels) != size or len(shown) != len(array):
        raise InputError(f"{len(labels)} names for {size} objectives, or another number of points.")
    if ax is None:
        import matplotlib.pyplot as plt

        projection = "3d" if size == 3 else None
        ax = plt.figure(layout="constrained").add_subplot(projection=projection)
    if size > 3:
        return _parallel(ax, array, labels, shown)
    for which, fill in ((shown, "full"), (~shown, "none")):
        if which.any():
            ax.plot(*array[which].T, "o", color="C0", fillstyle=fill, markersize=4)
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    if size == 3:
        ax.set_zlabel(labels[2])
        ax.view_init(elev=30, azim=45)
    return ax


def _parallel(ax: Any, points: Any, labels: Sequence[str], shown: Any) -> Any:
    """A line for each point over one axis an objective, each from its least to its largest."""
    low, high = points.min(0), points.max(0)
    scaled = (points - low) / np.where(high > low, high - low, 1)
    for row, kept in zip(scaled, shown, strict=True):
        ax.plot(row, color="C0" if kept else "0.8", alpha=0.6, linewidth=1)
    ticks = [f"{n}\n{a:.3g} … {b:.3g}" for n, a, b in zip(labels, low, high, strict=True)]
    ax.set_xticks(range(len(labels)), ticks)
    ax.set_yticks([0, 1], ["least", "largest"])
    ax.grid(axis="x")
    return ax
