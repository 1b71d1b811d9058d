"""How good a mask is: scores of pixels, of instances and of membranes, each with its source.

Pixels are counted (true and false positives and negatives), so that the counts of several images
add up. Foreground is everything but class 0.

    Dice            2 TP / (2 TP + FP + FN)             Dice 1945
    IoU             TP / (TP + FP + FN)                 Jaccard 1912
    pixel error     (FP + FN) / all                     ISBI 2012 challenge
    AP at t         TP / (TP + FP + FN) of instances    Caicedo et al. 2019 (Data Science Bowl)
    V_rand, V_info  see `RegionScores`                  Arganda-Carreras et al. 2015

The warping error of that challenge is left out: no maintained library has it.
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
    """How many pixels are foreground in the prediction, in the truth, in both or in neither."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    true_negatives: int = 0

    @classmethod
    def of(cls, prediction: Mask, truth: Mask, annotated: Mask | None = None) -> PixelCounts:
        """Count where `annotated` is true, by default everywhere."""
        if annotated is not None:
            prediction, truth = prediction[annotated], truth[annotated]
        both = int((prediction & truth).sum())
        only_prediction = int((prediction & ~truth).sum())
        only_truth = int((truth & ~prediction).sum())
        neither = prediction.size - both - only_prediction - only_truth
        return cls(both, only_prediction, only_truth, neither)

    def __add__(self, other: PixelCounts) -> PixelCounts:
        return PixelCounts(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
            self.true_negatives + other.true_negatives,
        )

    def scores(self) -> dict[str, float]:
        """Every score of pixels, by name.

        Where neither prediction nor truth has foreground all are 1, and the pixel error is 0.
        """
        both, errors = self.true_positives, self.false_positives + self.false_negatives
        pixels = both + errors + self.true_negatives
        return {
            "dice": ratio(2 * both, 2 * both + errors),
            "iou": ratio(both, both + errors),
            "pixel_error": errors / pixels if pixels else 0.0,
            "precision": ratio(both, both + self.false_positives),
            "recall": ratio(both, both + self.false_negatives),
        }


@dataclass(frozen=True)
class InstanceCounts:
    """How many instances the prediction and the truth have, and how many of them match.

    matches  by threshold of THRESHOLDS: pairs whose IoU is above it. All thresholds are 0.5 or
             more, so no instance is in two pairs.
    """

    prediction: int = 0
    truth: int = 0
    matches: tuple[int, ...] = (0,) * len(THRESHOLDS)

    @classmethod
    def of(cls, prediction: Labels, truth: Labels) -> InstanceCounts:
        """Count the instances of two label images; 0 is the background."""
        table = _Table.of(prediction, truth)
        pairs = (table.rows > 0) & (table.columns > 0)
        rows, columns, both = table.rows[pairs], table.columns[pairs], table.counts[pairs]
        prediction_sizes, truth_sizes = table.sums()
        iou = both / (prediction_sizes[rows] + truth_sizes[columns] - both)
        return cls(
            len(prediction_sizes) - 1,
            len(truth_sizes) - 1,
            tuple(int((iou > threshold).sum()) for threshold in THRESHOLDS),
        )

    def __add__(self, other: InstanceCounts) -> InstanceCounts:
        return InstanceCounts(
            self.prediction + other.prediction,
            self.truth + other.truth,
            tuple(a + b for a, b in zip(self.matches, other.matches, strict=True)),
        )

    def scores(self) -> dict[str, float]:
        """The average precision at every threshold: ap_50 to ap_90."""
        return {
            f"ap_{round(100 * threshold)}": ratio(matches, self.prediction + self.truth - matches)
            for threshold, matches in zip(THRESHOLDS, self.matches, strict=True)
        }


@dataclass(frozen=True)
class RegionScores:
    """How well the regions S of a prediction agree with the regions T of the truth.

    Only pixels count where the truth has a region.

    p_ij is the share of pixels that are in region i of S and in region j of T; s_i and t_j are its
    sums. Cuts and merges weigh the same:

        V_rand = 2 sum p_ij^2 / (sum s_i^2 + sum t_j^2)
        V_info = 2 I(S, T) / (H(S) + H(T))

    Arganda-Carreras et al. 2015, Frontiers in Neuroanatomy 9:142, with alpha 0.5; 1 is perfect.
    """

    v_rand: float
    v_info: float

    @classmethod
    def of(cls, prediction: Labels, truth: Labels) -> RegionScores:
        """Compare two label images; pixels that are 0 in `truth` are left out."""
        inside = truth > 0
        table = _Table.of(prediction[inside], truth[inside])
        pixels = max(table.counts.sum(), 1)
        p, (s, t) = table.counts / pixels, (sums / pixels for sums in table.sums())
        rand = ratio(2 * (p**2).sum(), (s**2).sum() + (t**2).sum())
        entropies = _entropy(s) + _entropy(t)
        return cls(rand, ratio(2 * (entropies - _entropy(p)), entropies))


def ratio(part: float, whole: float) -> float:
    """Their quotient; 1 where `whole` is 0, since then no mistake was possible."""
    return float(part / whole) if whole else 1.0


def compare_membranes(prediction: Mask, truth: Mask) -> RegionScores:
    """How well the predicted membranes (Y, X) separate the regions between them.

    Regions are connected by edges. The predicted membranes are thinned to nothing first: each of
    their pixels joins the nearest region. So only a region that is cut or merged counts, not the
    width of a membrane. (The challenge thins to skeletons, one pixel wide; the scores differ by
    those pixels only.)
    """
    return RegionScores.of(grow_labels(ndimage.label(~prediction)[0]), ndimage.label(~truth)[0])


@dataclass
class ScoreCounter:
    """Counts of several images, added up, and the scores that follow from them.

    measures  which: "pixels", "instances", "membranes" (mean over planes)
    classes   of the masks; with three, the last is the border of instances
    volumes   whether instances are volumes, else they are counted plane by plane
    """

    measures: tuple[str, ...]
    classes: int
    volumes: bool
    pixels: PixelCounts = PixelCounts()
    instances: InstanceCounts = InstanceCounts()
    planes: list[RegionScores] = field(default_factory=list)

    def add(
        self, prediction: Classes, truth: Classes, objects: Labels | None, annotated: Mask
    ) -> None:
        """Add an image; all are (Z, Y, X).

        objects    the true instances; by default the connected parts of `truth`
        annotated  where the labels are complete; nothing else counts
        """
        self.pixels += PixelCounts.of(prediction > 0, truth > 0, annotated)
        if "instances" in self.measures:
            planes = [slice(z, z + 1) for z in range(len(prediction))]
            for part in [slice(None)] if self.volumes else planes:
                instances = label_instances(prediction[part], self.classes)
                true_instances = (
                    label_instances(truth[part], self.classes) if objects is None else objects[part]
                )
                inside = annotated[part]
                self.instances += InstanceCounts.of(instances * inside, true_instances * inside)
        if "membranes" in self.measures:
            self.planes += [
                compare_membranes(p > 0, (t > 0) | ~a)
                for p, t, a in zip(prediction, truth, annotated, strict=True)
            ]

    def scores(self) -> dict[str, float]:
        """Every score by its name."""
        scores = self.pixels.scores()
        if "instances" in self.measures:
            scores |= self.instances.scores()
        if "membranes" in self.measures:
            scores["v_rand"] = float(np.mean([plane.v_rand for plane in self.planes]))
            scores["v_info"] = float(np.mean([plane.v_info for plane in self.planes]))
        return scores


def label_instances(mask: Classes, classes: int) -> NDArray[np.int32]:
    """The instances of a mask of classes, (Y, X) or (Z, Y, X): its connected parts, from 1.

    Parts are connected by faces. With two classes they are the parts of class 1. With three
    (background, inside, border) they are the parts of the inside, each grown over the border pixels
    nearest to it.
    """
    parts: NDArray[np.int32] = ndimage.label(mask == 1)[0].astype(np.int32)
    return np.where(mask > 0, grow_labels(parts), 0) if classes > 2 else parts


def grow_labels(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Labels without background: each pixel of the background takes the nearest label."""
    if not labels.any():
        return labels
    nearest = ndimage.distance_transform_edt(
        labels == 0, return_distances=False, return_indices=True
    )
    full: NDArray[np.int32] = labels[tuple(nearest)]
    return full


@dataclass(frozen=True)
class _Table:
    """How many pixels have label i in one image and j in another, for each pair that occurs.

    rows, columns  numbers of the labels, from 1; 0 is label 0
    counts         pixels of each pair
    """

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, first: Labels, second: Labels) -> _Table:
        row, column = _renumber(first), _renumber(second)
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


def _renumber(labels: Labels) -> NDArray[np.intp]:
    """Labels as 1, 2, ... without gaps; 0 stays 0."""
    values = np.unique(labels)
    numbers: NDArray[np.intp] = np.searchsorted(values[values > 0], labels.ravel()) + 1
    return np.where(labels.ravel() == 0, 0, numbers)


def _entropy(p: NDArray[np.float64]) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())
