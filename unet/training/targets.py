"""From labels to what the loss compares with: the class of every pixel, and its weight.

The border weights are those of Ronneberger, Fischer & Brox 2015 (https://arxiv.org/abs/1505.04597,
section 3): between two objects that nearly touch, a background pixel is worth up to w0 more, so
that the network learns to keep them apart. Objects that touch are parted first: by a seam of
background where there are two classes, by the class border where there are three.

Labels of a 2D network are taken plane by plane, those of a 3D network as volumes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

from unet.training.config import Border, Training
from unet.training.labelled import Labelled

INSIDE, BORDER = 1, 2
BORDER_WIDTH = 2  # pixels of an object's rim, where border is a class of its own
FADED = 4  # sigmas; beyond it a border weight is below w0 / 2000


@dataclass(frozen=True)
class Target:
    """What a part of an image is to become, all of it (Z, Y, X).

    classes  uint8
    weights  float32, 0 where nothing is annotated
    objects  flat positions of the pixels that are not background
    """

    classes: NDArray[np.uint8]
    weights: NDArray[np.float32]
    objects: NDArray[np.intp]


def target(labelled: Labelled, training: Training) -> Target:
    """The classes and weights of a labelled image."""
    labels = labelled.labels
    planes = [labels] if training.network.dims == 3 else list(labels)
    made = [_target(plane, labelled, training) for plane in planes]
    classes = np.stack([c for c, _ in made]).reshape(labels.shape)
    weights = np.stack([w for _, w in made]).reshape(labels.shape)
    weights = np.where(labelled.annotated, weights, 0).astype(np.float32)
    return Target(classes, weights, np.flatnonzero((classes > 0) & labelled.annotated))


def _target(
    labels: NDArray[np.int32], labelled: Labelled, training: Training
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The classes and weights of a plane (Y, X) or a volume (Z, Y, X)."""
    if labelled.said.values is None:
        classes, objects = from_instances(labels, len(training.classes))
    else:
        classes = labels.astype(np.uint8)
        objects, _ = ndimage.label(classes == training.classes.index(training.objects))
    weights = np.asarray(training.class_weights)[classes]
    if training.border.weight > 0:
        weights = np.where(objects > 0, weights, weights + border_weights(objects, training.border))
    return classes, weights.astype(np.float32)


def from_instances(
    labels: NDArray[np.int32], classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Classes of instance labels, and the instances as they are kept apart.

    Two classes: the pixels where two instances touch become background. Three: the rim of every
    instance becomes the class border.
    """
    if classes == 2:
        below = np.where(labels > 0, labels, np.iinfo(np.int32).max)
        touching = ndimage.maximum_filter(labels, 3) != ndimage.minimum_filter(below, 3)
        apart = np.where(touching, 0, labels)
        return (apart > 0).astype(np.uint8), apart
    size = 2 * BORDER_WIDTH + 1
    low, high = ndimage.minimum_filter(labels, size), ndimage.maximum_filter(labels, size)
    inside = (labels > 0) & (low == high)
    return np.where(inside, INSIDE, np.where(labels > 0, BORDER, 0)).astype(np.uint8), labels


def border_weights(objects: NDArray[np.int32], border: Border) -> NDArray[np.float64]:
    """w0 exp(-(d1 + d2)^2 / 2 sigma^2), with d1 and d2 the distances to the two nearest objects.

    0 where there are fewer than two within reach. `objects` are numbered from 1, 0 is none.
    """
    reach = math.ceil(FADED * border.sigma)
    nearest = np.full((2, *objects.shape), np.inf)
    for label, box in enumerate(ndimage.find_objects(objects), start=1):
        if box is None:
            continue
        wide = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
        distance = ndimage.distance_transform_edt(objects[wide] != label)
        first, second = nearest[0][wide], nearest[1][wide]
        np.minimum(second, np.maximum(first, distance), out=second)
        np.minimum(first, distance, out=first)
    squared = nearest.sum(axis=0) ** 2
    weights: NDArray[np.float64] = border.weight * np.exp(-squared / (2 * border.sigma**2))
    return weights
