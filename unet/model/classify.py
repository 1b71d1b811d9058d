"""From probabilities to classes: the one place where a pixel's class is decided."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def decide(foreground: NDArray[Any], threshold: float) -> NDArray[np.uint8]:
    """The class of each pixel, (t, 1, z, y, x), from its foreground probabilities (t, c, z, y, x).

    Two classes: 1 above the threshold. More: the most probable, of equal ones the first.
    """
    if foreground.shape[1] == 1:
        return (foreground > threshold).astype(np.uint8)
    classes: NDArray[np.uint8] = with_background(foreground).argmax(axis=1).astype(np.uint8)
    return classes[:, np.newaxis]


def with_background(foreground: NDArray[Any]) -> NDArray[Any]:
    """All classes (t, classes, z, y, x): the background is what the others lack to 1.

    Summed class by class, since numpy's own sum takes an order that depends on the shape.
    """
    every = np.empty((foreground.shape[0], foreground.shape[1] + 1, *foreground.shape[2:]), "f4")
    every[:, 0] = 1
    for k in range(foreground.shape[1]):
        every[:, 0] -= foreground[:, k]
        every[:, k + 1] = foreground[:, k]
    return every
