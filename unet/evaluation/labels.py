"""From labels to classes, in the same way for training and for evaluation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unet.errors import SourceError


def labels_to_classes(
    labels: NDArray[np.generic], values: tuple[int, ...] | None, path: str
) -> NDArray[np.uint8]:
    """The class of every pixel of labels of any shape, uint8.

    values  for class masks, the label value of each class; None for instances, which are class 1
    path    of the labels, for messages

    Raises SourceError where a label is none of the `values`: taken for background, it would be
    learned and counted as something that nobody labelled.
    """
    if values is None:
        return np.asarray(labels != 0).astype(np.uint8)
    classes = np.zeros(labels.shape, np.uint8)
    known = np.zeros(labels.shape, np.bool_)
    for number, value in enumerate(values):
        is_value = labels == value
        classes[is_value] = number
        known |= is_value
    if not known.all():
        unknown = np.unique(labels[~known])[:5].tolist()
        raise SourceError(
            f"Expected in {path} the `values` {list(values)} only, one for each class, but it also "
            f"holds {unknown}. Correct `values`, or leave them out if the labels are instances."
        )
    return classes
