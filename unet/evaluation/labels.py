"""What labels stand for: the class of every pixel, read in one way by training and evaluation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unet.errors import SourceError


def classes_of(
    labels: NDArray[np.generic], values: tuple[int, ...] | None, path: str
) -> NDArray[np.uint8]:
    """The classes of labels of any shape, uint8.

    values  of class masks, the label value of each class; None for instances, which are class 1
    path    of the labels, for messages

    Raises SourceError where a label is none of the `values`: as background it would be learned and
    counted as what nobody said.
    """
    if values is None:
        return np.asarray(labels != 0).astype(np.uint8)
    classes = np.zeros(labels.shape, np.uint8)
    known = np.zeros(labels.shape, np.bool_)
    for number, value in enumerate(values):
        here = labels == value
        classes[here] = number
        known |= here
    if not known.all():
        strange = np.unique(labels[~known])[:5].tolist()
        raise SourceError(
            f"Expected in {path} the `values` {list(values)} only, one for each class, but it also "
            f"holds {strange}. Correct `values`, or leave them out if the labels are instances."
        )
    return classes
