"""Labelled images in memory: read as the main job reads, normalised as it does, and split.

Why in memory: what somebody labelled by hand is small, and a sample may lie anywhere in it. An
image is normalised by the statistics of the whole image, as in prediction; its parts are cut out
afterwards, and what is trained on is mirrored at the part's own border. So no window ever holds a
pixel of what is validated on.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

from unet.errors import SourceError
from unet.evaluation.labels import labels_to_classes
from unet.model.folder import file_sha256
from unet.model.normalisation import Normalisation, summarise
from unet.planning.geometry import Box
from unet.sources import open_source
from unet.sources.base import SourceSpec
from unet.training.config import LabelledImage, Part, Training

INSTANCES = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Labelled:
    """A part of a labelled image, all of it on (z, y, x).

    said       what the configuration says of it
    pixels     (C, Z, Y, X) float32, normalised
    labels     (Z, Y, X) int32: instances from 1, 0 for none; of class masks the number of the class
    annotated  (Z, Y, X) bool
    """

    said: LabelledImage
    pixels: NDArray[np.float32]
    labels: NDArray[np.int32]
    annotated: NDArray[np.bool_]

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.said.image.path

    def part(self, ranges: Part) -> Labelled:
        """The part of it inside `ranges`. Raises SourceError where a range ends outside."""
        where = []
        for axis, size in zip("zyx", self.labels.shape, strict=True):
            start, stop = ranges.get(axis, (0, size))
            if stop > size:
                raise SourceError(
                    f"Expected the range {[start, stop]} of {axis} to lie inside {self.name}, "
                    f"which has {size} pixels on that axis. Correct it in the configuration."
                )
            where.append(slice(start, stop))
        cut = tuple(where)
        return Labelled(
            self.said,
            np.ascontiguousarray(self.pixels[(slice(None), *cut)]),
            np.ascontiguousarray(self.labels[cut]),
            np.ascontiguousarray(self.annotated[cut]),
        )


@dataclass(frozen=True)
class Split:
    """All that a training reads.

    seen, kept  parts to train on, and parts to measure on
    trained_on, not_seen  the same for model.yaml: files, sha256 of their pixels, and ranges
    channels    names of the images' channels
    """

    seen: tuple[Labelled, ...]
    kept: tuple[Labelled, ...]
    trained_on: list[dict[str, Any]]
    not_seen: list[dict[str, Any]]
    channels: tuple[str, ...]


def read_all(training: Training) -> Split:
    """Read every labelled image, once.

    Raises SourceError where an image and its labels do not fit, and where the pixels of one image
    stand under two names, of which one is trained and the other measured on.
    """
    seen: list[Labelled] = []
    kept: list[Labelled] = []
    trained_on: list[dict[str, Any]] = []
    not_seen: list[dict[str, Any]] = []
    channels: set[int] = set()
    known: list[tuple[LabelledImage, str]] = []
    for said in training.images:
        whole, digests = read_labelled(said, Normalisation(**normalised_by(training)))
        channels.add(len(whole.pixels))
        known.append((said, digests["pixels_sha256"]))
        for part, parts, listed in (
            (said.train, seen, trained_on),
            (said.validate, kept, not_seen),
        ):
            if part is not None:
                parts.append(whole.part(part))
                ranges = {axis: list(ends) for axis, ends in part.items()}
                listed.append({"image": Path(said.image.path).name, **digests, **ranges})
    if len(channels) > 1:
        raise SourceError(
            f"Expected images with one number of channels, got {sorted(channels)}. Choose the "
            f"channels of each with `channels`."
        )
    _refuse_copies(known)
    names = training.channels or tuple(map(str, range(channels.pop())))
    if len(names) != len(seen[0].pixels):
        raise SourceError(
            f"Expected {len(seen[0].pixels)} names in `channels`, one for each channel of the "
            f"images, got {len(names)}."
        )
    return Split(tuple(seen), tuple(kept), trained_on, not_seen, names)


def normalised_by(training: Training) -> dict[str, Any]:
    """The normalisation as model.yaml says it: zscore has no numbers."""
    said = training.normalisation
    return {"method": "zscore"} if said["method"] == "zscore" else dict(said)


def read_labelled(said: LabelledImage, norm: Normalisation) -> tuple[Labelled, dict[str, str]]:
    """An image with its labels, and the sha256 of the pixels of all that was read."""
    image, labels = _read(said.image), _read(said.label)
    masks = [labels] if said.annotated is None else [labels, _read(said.annotated)]
    for mask, path in zip(masks, said.paths[1:], strict=True):
        if mask.shape[1:] != image.shape[1:] or len(mask) != 1:
            raise SourceError(
                f"Expected {path} to have one channel and the size of its image "
                f"{said.image.path}, (z, y, x) = {image.shape[1:]}, got {len(mask)} and "
                f"{mask.shape[1:]}. Check that they belong together, and the axes."
            )
    summaries = summarise(image, norm.percentiles)
    offset, scale = (np.reshape(n, (-1, 1, 1, 1)) for n in norm.affine(summaries))
    pixels = ((image.astype(np.float64) - offset) * scale).astype(np.float32)
    annotated = masks[1][0] != 0 if len(masks) > 1 else np.ones(image.shape[1:], np.bool_)
    numbers = _numbers(labels[0], said)
    if said.fill_holes and said.values is None:
        numbers = without_holes(numbers)
    digests = {"pixels_sha256": digest(image), "label_sha256": digest(labels)}
    if len(masks) > 1:
        digests["annotated_sha256"] = digest(masks[1])
    return Labelled(said, pixels, numbers, annotated), digests


def digest(pixels: NDArray[np.generic]) -> str:
    """sha256 over dtype, shape and pixels: the same for the same image in any format."""
    said = hashlib.sha256(repr((str(pixels.dtype), pixels.shape)).encode())
    said.update(np.ascontiguousarray(pixels).data)
    return said.hexdigest()


def identity(training: Training, split: Split) -> list[Any]:
    """What names a training: its settings, and the pixels that it sees, in order."""
    images = [asdict(image) | {"set": None, "validate": None} for image in training.images]
    for image in images:
        for spec in ("image", "label", "annotated"):
            image[spec] = None  # a moved file is the same file: its pixels are below
    starts = [file_sha256(file) for file in training.start_files]
    return [training.decisive() | {"start": None}, starts, images, split.trained_on]


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


def _numbers(labels: NDArray[np.generic], said: LabelledImage) -> NDArray[np.int32]:
    """Classes of a class mask, else instances without gaps: the work grows with the last."""
    if said.values is not None:
        return labels_to_classes(labels, said.values, said.label.path).astype(np.int32)
    found = np.unique(labels)
    if np.any(found != np.rint(found.astype(np.float64))) or found[0] < 0 or found[-1] > INSTANCES:
        raise SourceError(
            f"Expected whole numbers from 0 to {INSTANCES} as labels in {said.label.path}, got "
            f"values from {found[0]} to {found[-1]}."
        )
    ids = found[found != 0]
    return np.where(labels != 0, np.searchsorted(ids, labels) + 1, 0).astype(np.int32)


def without_holes(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Instances with their holes filled, plane by plane: pseudo-labels often have some."""
    filled = labels.copy()
    for index in np.ndindex(labels.shape[:-2]):
        plane = filled[index]
        for label, box in enumerate(ndimage.find_objects(plane), start=1):
            if box is not None:
                hole = ndimage.binary_fill_holes(plane[box] == label) & (plane[box] == 0)
                plane[box][hole] = label
    return filled


def _refuse_copies(images: list[tuple[LabelledImage, str]]) -> None:
    """Equal pixels are one image, whatever the files are called.

    images  each with the sha256 of its pixels. Two parts of one file are let through: that they
            are apart is seen in the configuration.
    """
    for kept, digest_kept in images:
        for seen, digest_seen in images:
            if (
                kept.validate is not None
                and seen.train is not None
                and digest_kept == digest_seen
                and kept.place != seen.place
            ):
                raise SourceError(
                    f"Expected images to validate on that are not trained on, but "
                    f"{kept.image.path} has the same pixels as {seen.image.path}. Take one of them "
                    f"out."
                )
