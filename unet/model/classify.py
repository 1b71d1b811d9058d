"""From probabilities to classes: the one place where a pixel's class is decided."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def decide(foreground: NDArray[Any], threshold: float) -> NDArray[np.uint8]:
    """The class of each pixel, (t, 1, z, y, x), from its foreground probabilities (t, c, z, y, x).

    Two classes: 1 above the threshold. More: the most probable one; the first, if several are.
    """
    if foreground.shape[1] == 1:
        return (foreground > threshold).astype(np.uint8)
    classes: NDArray[np.uint8] = with_background(foreground).argmax(axis=1).astype(np.uint8)
    return classes[:, np.newaxis]


def with_background(foreground: NDArray[Any]) -> NDArray[Any]:
    """Probabilities of all classes (t, classes, z, y, x): the background is 1 minus the others.

    Subtracted class by class, since numpy's own sum takes an order that depends on the shape.
    """
    shape = (foreground.shape[0], foreground.shape[1] + 1, *foreground.shape[2:])
    probabilities = np.empty(shape, "f4")
    probabilities[:, 0] = 1
    for k in range(foreground.shape[1]):
        probabilities[:, 0] -= foreground[:, k]
        probabilities[:, k + 1] = foreground[:, k]
    return probabilities
