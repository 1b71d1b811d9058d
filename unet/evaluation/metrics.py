"""How good a mask is: measures of pixels, of instances, and of membranes, each with its source.

Pixels are counted (true and false positives and negatives), so that figures of several images add
up. Foreground is everything but class 0.

    Dice            2 TP / (2 TP + FP + FN)             Dice 1945
    IoU             TP / (TP + FP + FN)                 Jaccard 1912
    pixel error     (FP + FN) / all                     ISBI 2012 challenge
    AP at t         TP / (TP + FP + FN) of instances    Caicedo et al. 2019 (Data Science Bowl)
    V_rand, V_info  see `Overlaps`                      Arganda-Carreras et al. 2015

The warping error of the same challenge is left out: no library that is kept up has it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)

Mask = NDArray[np.bool_]
Labels = NDArray[np.integer]
Classes = NDArray[np.uint8]


@dataclass(frozen=True)
class PixelCounts:
    """Counts of pixels: found and wanted, found only, wanted only, neither."""

    both: int = 0
    found: int = 0
    wanted: int = 0
    neither: int = 0

    @classmethod
    def of(cls, found: Mask, wanted: Mask, annotated: Mask | None = None) -> PixelCounts:
        """Count where `annotated` is true, by default everywhere."""
        if annotated is not None:
            found, wanted = found[annotated], wanted[annotated]
        both, only = int((found & wanted).sum()), int((found & ~wanted).sum())
        missed = int((wanted & ~found).sum())
        return cls(both, only, missed, found.size - both - only - missed)

    def __add__(self, other: PixelCounts) -> PixelCounts:
        return PixelCounts(
            self.both + other.both,
            self.found + other.found,
            self.wanted + other.wanted,
            self.neither + other.neither,
        )

    def scores(self) -> dict[str, float]:
        """Every measure of pixels; 1 (error 0) where there is nothing and nothing was found."""
        wrong = self.found + self.wanted
        every = self.both + wrong + self.neither
        return {
            "dice": ratio(2 * self.both, 2 * self.both + wrong),
            "iou": ratio(self.both, self.both + wrong),
            "pixel_error": wrong / every if every else 0.0,
            "precision": ratio(self.both, self.both + self.found),
            "recall": ratio(self.both, self.both + self.wanted),
        }


@dataclass(frozen=True)
class Instances:
    """Counts of instances: how many there are, how many were found, and how many match at an IoU.

    An instance matches where its IoU with another is above the threshold; from 0.5 on no instance
    can match two.
    """

    found: int = 0
    wanted: int = 0
    matched: tuple[int, ...] = (0,) * len(THRESHOLDS)

    @classmethod
    def of(cls, found: Labels, wanted: Labels) -> Instances:
        """Count instances of two label images, 0 for none."""
        table = _Table.of(found, wanted)
        pairs = (table.rows > 0) & (table.columns > 0)
        rows, columns, both = table.rows[pairs], table.columns[pairs], table.counts[pairs]
        of_found, of_wanted = table.sums()
        iou = both / (of_found[rows] + of_wanted[columns] - both)
        return cls(
            len(of_found) - 1,
            len(of_wanted) - 1,
            tuple(int((iou > threshold).sum()) for threshold in THRESHOLDS),
        )

    def __add__(self, other: Instances) -> Instances:
        matched = tuple(a + b for a, b in zip(self.matched, other.matched, strict=True))
        return Instances(self.found + other.found, self.wanted + other.wanted, matched)

    def scores(self) -> dict[str, float]:
        """The average precision at every threshold: ap_50 to ap_90."""
        return {
            f"ap_{round(100 * threshold)}": ratio(matched, self.found + self.wanted - matched)
            for threshold, matched in zip(THRESHOLDS, self.matched, strict=True)
        }


@dataclass(frozen=True)
class Overlaps:
    """How well a segmentation S agrees with the truth T, over the pixels where T has an object.

    With p_ij the share of the pixels that are in region i of S and in region j of T, s_i and t_j
    its sums, and the weights of both kinds of mistake equal:

        V_rand = 2 sum p_ij^2 / (sum s_i^2 + sum t_j^2)
        V_info = 2 I(S, T) / (H(S) + H(T))

    Arganda-Carreras et al. 2015, Frontiers in Neuroanatomy 9:142, with alpha 0.5; 1 is perfect.
    """

    v_rand: float
    v_info: float

    @classmethod
    def of(cls, found: Labels, wanted: Labels) -> Overlaps:
        """Compare two label images; pixels that are 0 in `wanted` are left out."""
        inside = wanted > 0
        table = _Table.of(found[inside], wanted[inside])
        every = max(table.counts.sum(), 1)
        p, (s, t) = table.counts / every, (sums / every for sums in table.sums())
        rand = ratio(2 * (p**2).sum(), (s**2).sum() + (t**2).sum())
        apart = _entropy(s) + _entropy(t)
        return cls(rand, ratio(2 * (apart - _entropy(p)), apart))


def ratio(part: float, whole: float) -> float:
    """Their quotient; 1 where there is nothing to be found and nothing was found."""
    return float(part / whole) if whole else 1.0


def membranes(found: Mask, wanted: Mask) -> Overlaps:
    """How well the membranes (Y, X) that were found part the regions between them.

    Regions are connected by edges. The membranes that were found are thinned to nothing first:
    each of their pixels joins the nearest region, so that only where a region is cut or merged
    counts, and not how broad a membrane was drawn. (The challenge thins to skeletons, one pixel
    wide; the difference is on those pixels only.)
    """
    return Overlaps.of(grown(ndimage.label(~found)[0]), ndimage.label(~wanted)[0])


@dataclass
class Tally:
    """Measures of several images, added up.

    kinds    which: "pixels", "instances", "membranes" (mean over planes)
    classes  of the masks; with three, the last is the border of instances
    volumes  whether instances are volumes, else plane by plane
    """

    kinds: tuple[str, ...]
    classes: int
    volumes: bool
    pixels: PixelCounts = PixelCounts()
    instances: Instances = Instances()
    planes: list[Overlaps] = field(default_factory=list)

    def add(self, found: Classes, wanted: Classes, objects: Labels | None, annotated: Mask) -> None:
        """Add an image; all are (Z, Y, X).

        objects    its instances; by default the connected parts of `wanted`
        annotated  where the labels are complete; nothing else counts
        """
        self.pixels += PixelCounts.of(found > 0, wanted > 0, annotated)
        if "instances" in self.kinds:
            whole = [slice(None)] if self.volumes else [slice(z, z + 1) for z in range(len(found))]
            for cut in whole:
                parts = instances(found[cut], self.classes)
                truth = instances(wanted[cut], self.classes) if objects is None else objects[cut]
                inside = annotated[cut]
                self.instances += Instances.of(parts * inside, truth * inside)
        if "membranes" in self.kinds:
            self.planes += [
                membranes(f > 0, (w > 0) | ~a)
                for f, w, a in zip(found, wanted, annotated, strict=True)
            ]

    def scores(self) -> dict[str, float]:
        """Every measure by its name."""
        figures = self.pixels.scores()
        if "instances" in self.kinds:
            figures |= self.instances.scores()
        if "membranes" in self.kinds:
            figures["v_rand"] = float(np.mean([plane.v_rand for plane in self.planes]))
            figures["v_info"] = float(np.mean([plane.v_info for plane in self.planes]))
        return figures


def instances(classes: Classes, count: int) -> NDArray[np.int32]:
    """Instances of a mask of classes (Y, X) or (Z, Y, X): connected parts, joined by faces.

    With two classes the parts of class 1. With three (background, inside, border) the parts of the
    inside, each grown over the border pixels nearest to it.
    """
    parts: NDArray[np.int32] = ndimage.label(classes == 1)[0].astype(np.int32)
    return np.where(classes > 0, grown(parts), 0) if count > 2 else parts


def grown(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Every pixel that has no label takes that of the nearest which has one."""
    if not labels.any():
        return labels
    nearest = ndimage.distance_transform_edt(
        labels == 0, return_distances=False, return_indices=True
    )
    filled: NDArray[np.int32] = labels[tuple(nearest)]
    return filled


@dataclass(frozen=True)
class _Table:
    """How many pixels have label i in one image and j in another, for the pairs that occur.

    rows, columns  numbers of the labels, from 1; 0 is label 0
    counts         pixels of each pair
    """

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, first: Labels, second: Labels) -> _Table:
        row, column = _numbered(first), _numbered(second)
        width = int(column.max(initial=0)) + 1
        pairs, counts = np.unique(row * width + column, return_counts=True)
        return cls(pairs // width, pairs % width, counts)

    def sums(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pixels of each label of the first image, and of the second."""
        weights = self.counts.astype(np.float64)
        return (
            np.bincount(self.rows, weights, 1).astype(np.float64),
            np.bincount(self.columns, weights, 1).astype(np.float64),
        )


def _numbered(labels: Labels) -> NDArray[np.intp]:
    """Labels as 1, 2, ... without gaps; 0 stays 0."""
    found = np.unique(labels)
    numbers: NDArray[np.intp] = np.searchsorted(found[found > 0], labels.ravel()) + 1
    return np.where(labels.ravel() == 0, 0, numbers)


def _entropy(p: NDArray[np.float64]) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())
