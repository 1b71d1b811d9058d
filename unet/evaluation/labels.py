"""From labels to classes, in the same way for training and for evaluation."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

from unet.errors import SourceError

log = logging.getLogger(__name__)

MOST_INSTANCES = np.iinfo(np.int32).max


def labels_to_classes(
    labels: NDArray[np.generic], values: tuple[int, ...] | None, path: str
) -> NDArray[np.uint8]:
    """The class of every pixel of labels of any shape, uint8.

    values  for class masks, the label value of each class; None for instances, which are class 1
    path    of the labels, for messages

    Raises SourceError where a label is none of the `values`: taken for background, it would be
    learned and counted as something that nobody labelled. Of instances, where it is no whole number
    from 0: -1 is often written where nobody labelled, and a fraction is a probability.
    """
    if values is None:
        _refuse_no_instances(labels, path)
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


def _refuse_no_instances(labels: NDArray[np.generic], path: str) -> None:
    low, high = labels.min(), labels.max()  # NaN, if there is one
    is_whole = labels.dtype.kind in "bui" or np.array_equal(labels, np.rint(np.real(labels)))
    if not is_whole or low < 0 or high > MOST_INSTANCES:
        raise SourceError(
            f"Expected whole numbers from 0 to {MOST_INSTANCES} as labels in {path}, got values "
            f"from {low} to {high}{'' if is_whole else ', fractions among them'}. Where numbers "
            f"below 0 mean that nobody labelled there, set them to 0 and name with `annotated` a "
            f"mask of what is labelled; of probabilities, make a mask. Or correct the path."
        )


class LabelSurvey:
    """What labels hold, seen part by part: so that those that say nothing are told."""

    def __init__(self, path: str, *, of_instances: bool) -> None:
        """`of_instances`: whether objects that touch no other are told apart by their numbers."""
        self._path = path
        self._of_instances = of_instances
        self._numbers: set[int] = set()
        self._most_parts = 0

    def add(self, labels: NDArray[np.generic]) -> None:
        """Look at a part of the labels, whole in the axes that an object spreads over."""
        if len(self._numbers) > 1:
            return
        objects = np.asarray(labels != 0)
        self._numbers.update(map(int, np.unique(labels[objects])[:2]))
        if self._of_instances and len(self._numbers) == 1:
            self._most_parts = max(self._most_parts, ndimage.label(objects)[1])

    def warn(self) -> None:
        """Log a warning where all labels are 0, or where a mask was given for instances."""
        if not self._numbers:
            log.warning(
                "all labels in %s are 0: nothing is labelled there. Check that it is the right "
                "file, and that `annotated`, if it is named, is the mask of what is labelled",
                self._path,
            )
        elif len(self._numbers) == 1 and self._most_parts > 1:
            log.warning(
                "all labels in %s are %d, in %d places: as instances they are one object. If it is "
                "a mask, name its `values`, such as [0, %d]; or number the objects",
                *(self._path, *self._numbers, self._most_parts, *self._numbers),
            )
