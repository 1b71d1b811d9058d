"""Labelled images in memory: read and normalised as the main job does it, then cut into parts.

Why in memory: images that somebody labelled by hand are small, and a sample may lie anywhere in
them.

An image is normalised by the statistics of the whole image, as in prediction. Then its parts are
cut out, and a part to train on is mirrored at its own border. So no training window ever holds a
pixel of a validation part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

from unet.errors import SourceError
from unet.evaluation.labels import LabelSurvey, labels_to_classes
from unet.model.normalisation import Normalisation, summarise
from unet.planning.geometry import Box
from unet.sources import open_source
from unet.sources.base import SourceSpec
from unet.training.config import LabelledImageConfig, Ranges, Training


@dataclass(frozen=True)
class LabelledImage:
    """A labelled image or a part of one.

    config     its entry in the configuration
    pixels     (C, Z, Y, X) float32, normalised
    labels     (Z, Y, X) int32: instances from 1, 0 for none; for class masks the class numbers
    annotated  (Z, Y, X) bool
    """

    config: LabelledImageConfig
    pixels: NDArray[np.float32]
    labels: NDArray[np.int32]
    annotated: NDArray[np.bool_]

    @property
    def name(self) -> str:
        """The path of the image, for messages."""
        return self.config.image.path

    def part(self, ranges: Ranges) -> LabelledImage:
        """The part of it inside `ranges`. Raises SourceError where a range ends outside."""
        slices = []
        for axis, size in zip("zyx", self.labels.shape, strict=True):
            start, stop = ranges.get(axis, (0, size))
            if stop > size:
                raise SourceError(
                    f"Expected the range {[start, stop]} of {axis} to lie inside {self.name}, "
                    f"which has {size} pixels on that axis. Correct it in the configuration."
                )
            slices.append(slice(start, stop))
        box = tuple(slices)
        return LabelledImage(
            self.config,
            np.ascontiguousarray(self.pixels[(slice(None), *box)]),
            np.ascontiguousarray(self.labels[box]),
            np.ascontiguousarray(self.annotated[box]),
        )


@dataclass(frozen=True)
class LabelledData:
    """All that a training reads.

    training_parts    to train on; `trained_on` describes them in model.yaml
    validation_parts  to measure on; `not_seen` describes them in model.yaml
    channels          names of the images' channels

    A description has the file, the sha256 of its pixels, and the ranges.
    """

    training_parts: tuple[LabelledImage, ...]
    validation_parts: tuple[LabelledImage, ...]
    trained_on: list[dict[str, Any]]
    not_seen: list[dict[str, Any]]
    channels: tuple[str, ...]


def read_all(training: Training) -> LabelledData:
    """Read every labelled image, once.

    Raises SourceError where an image and its labels do not fit, and where an image to validate on
    is a copy of one to train on.
    """
    training_parts: list[LabelledImage] = []
    validation_parts: list[LabelledImage] = []
    trained_on: list[dict[str, Any]] = []
    not_seen: list[dict[str, Any]] = []
    channels: set[int] = set()
    pixel_digests: list[tuple[LabelledImageConfig, str]] = []
    for config in training.images:
        image, digests = read_labelled(config, Normalisation(**normalisation_settings(training)))
        channels.add(len(image.pixels))
        pixel_digests.append((config, digests["pixels_sha256"]))
        for ranges, parts, descriptions in (
            (config.train, training_parts, trained_on),
            (config.validate, validation_parts, not_seen),
        ):
            if ranges is not None:
                parts.append(image.part(ranges))
                lists = {axis: list(ends) for axis, ends in ranges.items()}
                descriptions.append({"image": Path(config.image.path).name, **digests, **lists})
    if len(channels) > 1:
        raise SourceError(
            f"Expected images with equally many channels, got {sorted(channels)}. Choose the "
            f"channels of each image with `channels`."
        )
    _refuse_copies(pixel_digests)
    names = training.channels or tuple(map(str, range(channels.pop())))
    if len(names) != len(training_parts[0].pixels):
        raise SourceError(
            f"Expected {len(training_parts[0].pixels)} names in `channels`, one for each channel "
            f"of the images, got {len(names)}. Correct the list."
        )
    return LabelledData(tuple(training_parts), tuple(validation_parts), trained_on, not_seen, names)


def normalisation_settings(training: Training) -> dict[str, Any]:
    """The normalisation as model.yaml has it: `low` and `high` only where the method uses them."""
    settings = training.normalisation
    return {"method": "zscore"} if settings["method"] == "zscore" else dict(settings)


def read_labelled(
    config: LabelledImageConfig, norm: Normalisation
) -> tuple[LabelledImage, dict[str, str]]:
    """An image with its labels, and the sha256 of the pixels of every file."""
    image, labels = _read(config.image), _read(config.label)
    masks = [labels] if config.annotated is None else [labels, _read(config.annotated)]
    for mask, path in zip(masks, config.paths[1:], strict=True):
        if mask.shape[1:] != image.shape[1:] or len(mask) != 1:
            raise SourceError(
                f"Expected {path} to have one channel and the size of its image "
                f"{config.image.path}, (z, y, x) = {image.shape[1:]}, got {len(mask)} and "
                f"{mask.shape[1:]}. Check that they belong together, and that the axes are "
                f"right."
            )
    summaries = summarise(image, norm.percentiles)
    offset, scale = (np.reshape(n, (-1, 1, 1, 1)) for n in norm.affine(summaries))
    pixels = ((image.astype(np.float64) - offset) * scale).astype(np.float32)
    annotated = masks[1][0] != 0 if len(masks) > 1 else np.ones(image.shape[1:], np.bool_)
    numbers = _numbers(labels[0], config)
    survey = LabelSurvey(config.label.path, of_instances=config.values is None)
    survey.add(np.where(annotated, labels[0], 0))
    survey.warn()
    if config.fill_holes and config.values is None:
        numbers = fill_holes_of_instances(numbers)
    digests = {"pixels_sha256": pixel_digest(image), "label_sha256": pixel_digest(labels)}
    if len(masks) > 1:
        digests["annotated_sha256"] = pixel_digest(masks[1])
    return LabelledImage(config, pixels, numbers, annotated), digests


def pixel_digest(pixels: NDArray[np.generic]) -> str:
    """sha256 over dtype, shape and pixels: the same for the same image in any format."""
    digest = hashlib.sha256(repr((str(pixels.dtype), pixels.shape)).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def training_identity(training: Training, split: LabelledData, starts: Sequence[str]) -> list[Any]:
    """Everything that the trained weights depend on: settings, start weights, pixels in order.

    starts  the sha256 of each file of weights to start from
    """
    images = [asdict(image) | {"set": None, "validate": None} for image in training.images]
    for image in images:
        for spec in ("image", "label", "annotated"):
            image[spec] = None  # a file may move; its pixels are in `trained_on`
    return [training.settings() | {"start": None}, list(starts), images, split.trained_on]


def _read(spec: SourceSpec) -> NDArray[np.generic]:
    """All pixels of an image without time: (C, Z, Y, X)."""
    source = open_source(spec)
    try:
        t, _, *zyx = source.shape
        if t > 1:
            raise SourceError(
                f"Expected {spec.path} to have no time axis, got {t} time points. If they are the "
                f"planes of a stack, say so in its axes (z instead of t)."
            )
        pixels: NDArray[np.generic] = source.read(Box((0, 0, 0, 0), (1, *zyx)))[0]
        return pixels
    finally:
        source.close()


def _numbers(labels: NDArray[np.generic], config: LabelledImageConfig) -> NDArray[np.int32]:
    """The classes of a class mask; else instances, renumbered from 1 without gaps.

    Why without gaps: the time to find instances grows with the largest number.
    """
    classes = labels_to_classes(labels, config.values, config.label.path)
    if config.values is not None:
        return classes.astype(np.int32)
    ids = np.unique(labels[classes != 0])
    return np.where(labels != 0, np.searchsorted(ids, labels) + 1, 0).astype(np.int32)


def fill_holes_of_instances(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Fill the holes of instances, plane by plane: labels made by a program often have some."""
    result = labels.copy()
    for index in np.ndindex(labels.shape[:-2]):
        plane = result[index]
        for label, box in enumerate(ndimage.find_objects(plane), start=1):
            if box is not None:
                hole = ndimage.binary_fill_holes(plane[box] == label) & (plane[box] == 0)
                plane[box][hole] = label
    return result


def _refuse_copies(images: list[tuple[LabelledImageConfig, str]]) -> None:
    """Refuse two files with equal pixels where one is trained on and the other validates.

    images  each with the sha256 of its pixels

    Two parts of one file are allowed: that they share no pixel is checked in the configuration.
    """
    validation = [(image, sha256) for image, sha256 in images if image.validate is not None]
    training = [(image, sha256) for image, sha256 in images if image.train is not None]
    for image, sha256 in validation:
        for other, other_sha256 in training:
            if sha256 == other_sha256 and image.location != other.location:
                raise SourceError(
                    f"Expected images to validate on that are not trained on, but "
                    f"{image.image.path} has the same pixels as {other.image.path}. Take one of "
                    f"them out."
                )
