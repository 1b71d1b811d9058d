"""From labels to targets of the loss: the class of every pixel, and its weight.

The border weights are those of Ronneberger, Fischer & Brox 2015 (https://arxiv.org/abs/1505.04597,
section 3): between two objects that nearly touch, the weight of a background pixel is up to w0
higher, so that the network learns to separate them. Objects that touch are separated first: by a
line of background where there are two classes, by the class border where there are three.

The labels for a 2D network are planes, those for a 3D network are volumes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

from unet.training.config import BorderOptions, Training
from unet.training.labelled import LabelledImage

INSIDE, BORDER = 1, 2
BORDER_WIDTH = 2  # pixels of the class border, along the edge of each object
REACH_SIGMAS = 4  # beyond, a border weight is below w0 / 2000


@dataclass(frozen=True)
class PixelTargets:
    """The targets of the loss for a part of an image, (Z, Y, X).

    classes  uint8
    weights  float32, 0 where nothing is annotated
    objects  flat indices of the annotated pixels that are not background
    """

    classes: NDArray[np.uint8]
    weights: NDArray[np.float32]
    objects: NDArray[np.intp]


def make_targets(labelled: LabelledImage, training: Training) -> PixelTargets:
    """The targets of a labelled image."""
    labels = labelled.labels
    planes = [labels] if training.network.dims == 3 else list(labels)
    targets = [_targets(plane, labelled, training) for plane in planes]
    classes = np.stack([c for c, _ in targets]).reshape(labels.shape)
    weights = np.stack([w for _, w in targets]).reshape(labels.shape)
    weights = np.where(labelled.annotated, weights, 0).astype(np.float32)
    return PixelTargets(classes, weights, np.flatnonzero((classes > 0) & labelled.annotated))


def _targets(
    labels: NDArray[np.int32], labelled: LabelledImage, training: Training
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The classes and weights of a plane (Y, X) or a volume (Z, Y, X)."""
    if labelled.config.values is None:
        classes, objects = classes_of_instances(labels, len(training.classes))
    else:
        classes = labels.astype(np.uint8)
        objects, _ = ndimage.label(classes == training.classes.index(training.objects))
    weights = np.asarray(training.class_weights)[classes]
    if training.border.weight > 0:
        weights = np.where(objects > 0, weights, weights + border_weights(objects, training.border))
    return classes, weights.astype(np.float32)


def classes_of_instances(
    labels: NDArray[np.int32], classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """The classes of instance labels, and the instances after they were separated.

    Two classes: the pixels where two instances touch become background. Three: the edge of every
    instance becomes the class border.
    """
    if classes == 2:
        below = np.where(labels > 0, labels, np.iinfo(np.int32).max)
        touching = ndimage.maximum_filter(labels, 3) != ndimage.minimum_filter(below, 3)
        instances = np.where(touching, 0, labels)
        return (instances > 0).astype(np.uint8), instances
    size = 2 * BORDER_WIDTH + 1
    low, high = ndimage.minimum_filter(labels, size), ndimage.maximum_filter(labels, size)
    inside = (labels > 0) & (low == high)
    return np.where(inside, INSIDE, np.where(labels > 0, BORDER, 0)).astype(np.uint8), labels


def border_weights(objects: NDArray[np.int32], border: BorderOptions) -> NDArray[np.float64]:
    """w0 exp(-(d1 + d2)^2 / 2 sigma^2), with d1 and d2 the distances to the two nearest objects.

    0 where fewer than two are within reach. `objects` are numbered from 1; 0 is background.
    """
    reach = math.ceil(REACH_SIGMAS * border.sigma)
    nearest = np.full((2, *objects.shape), np.inf)
    for label, box in enumerate(ndimage.find_objects(objects), start=1):
        if box is None:
            continue
        around = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
        distance = ndimage.distance_transform_edt(objects[around] != label)
        first, second = nearest[0][around], nearest[1][around]
        np.minimum(second, np.maximum(first, distance), out=second)
        np.minimum(first, distance, out=first)
    squared = nearest.sum(axis=0) ** 2
    weights: NDArray[np.float64] = border.weight * np.exp(-squared / (2 * border.sigma**2))
    return weights
