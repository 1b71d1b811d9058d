"""Statistics of a whole image, for a normalisation that is the same in every window.

Why of the whole image: where each tile is normalised by itself, the grid of the tiles shows in the
result.

Why a histogram: it is exact for 8 and 16 bit images, has a fixed size, and its counts add up to the
same numbers in any order. Mean, standard deviation and percentiles all follow from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unet.errors import SourceError

BINS = 1 << 16
STRIP = 1 << 19  # values per step: more would not fit the CPU's cache


@dataclass(frozen=True)
class Bins:
    """How values map to bins: 65,536 equal bins over [low, low + BINS * width).

    For integers of 8 and 16 bits each value has its own bin, and every statistic is exact. For
    wider integers and floats the bins span the image from its minimum to its maximum, and a
    percentile is exact to 1/65,536 of that span.
    """

    low: float
    width: float

    @classmethod
    def for_dtype(cls, dtype: np.dtype) -> Bins | None:
        """The exact bins of an 8 or 16 bit dtype; None where minimum and maximum are needed."""
        if dtype == np.bool_:
            return cls(0.0, 1.0)
        if dtype.kind in "iu" and dtype.itemsize <= 2:
            return cls(float(np.iinfo(dtype).min), 1.0)
        return None

    @classmethod
    def for_span(cls, low: float, high: float) -> Bins:
        """Bins over [low, high], both included."""
        return cls(low, (high - low) / (BINS - 1) or 1.0)

    def count(self, values: NDArray[np.generic]) -> NDArray[np.int64]:
        """Counts of `values` (any shape) in each bin: (BINS,) int64."""
        counts, flat = np.zeros(BINS, np.int64), values.ravel()
        for start in range(0, flat.size, STRIP):
            part = self._index(flat[start : start + STRIP])
            counts += np.bincount(part, minlength=BINS)
        return counts

    def _index(self, values: NDArray[np.generic]) -> NDArray[np.int64]:
        """The bin of each value."""
        if self.width == 1.0 and values.dtype.kind in "iub":
            index = values.astype(np.int64)
            return np.subtract(index, int(self.low), out=index)
        scaled = (values.astype(np.float64) - self.low) / self.width
        return np.clip(np.rint(scaled), 0, BINS - 1).astype(np.int64)


@dataclass(frozen=True)
class Summary:
    """Statistics of one channel, in the image's own units; `std` is the standard deviation."""

    minimum: float
    maximum: float
    mean: float
    std: float
    percentiles: dict[float, float]

    @classmethod
    def of(cls, bins: Bins, counts: NDArray[np.int64], percentiles: tuple[float, ...]) -> Summary:
        """Derive the summary from a histogram; a percentile is the smallest bin that reaches it."""
        total = int(counts.sum())
        if total == 0:
            raise SourceError("Expected an image with pixels, got none to take statistics of.")
        nonempty = np.flatnonzero(counts)
        values = bins.low + nonempty * bins.width
        weights = counts[nonempty] / total
        mean = float(weights @ values)
        cumulative = np.cumsum(counts)
        bin_by_percentile = {
            p: int(np.searchsorted(cumulative, max(1, int(np.ceil(total * p / 100)))))
            for p in percentiles
        }
        return cls(
            minimum=float(values[0]),
            maximum=float(values[-1]),
            mean=mean,
            std=float(np.sqrt(weights @ (values - mean) ** 2)),
            percentiles={
                p: float(bins.low + index * bins.width) for p, index in bin_by_percentile.items()
            },
        )


@dataclass(frozen=True)
class Normalisation:
    """How pixel values become the network's input: (value - offset) * scale, by channel.

    method   `range`: `low` and `high`, in the image's own units, become 0 and 1;
             `percentile`: the percentiles `low` and `high` of the whole image become 0 and 1;
             `zscore`: the mean of the whole image becomes 0 and its standard deviation 1.
    """

    method: str
    low: float = 0.0
    high: float = 1.0

    @property
    def percentiles(self) -> tuple[float, ...]:
        """The percentiles that the summary must hold."""
        return (self.low, self.high) if self.method == "percentile" else ()

    def affine(self, summaries: list[Summary]) -> tuple[list[float], list[float]]:
        """Offsets and scales, one per channel. A constant channel becomes 0: its scale is 1.

        Raises SourceError where a channel that is not constant has no range to normalise by.
        """
        spans = []
        for summary in summaries:
            if self.method == "zscore":
                spans.append((summary.mean, summary.std))
            elif self.method == "percentile":
                low = summary.percentiles[self.low]
                spans.append((low, summary.percentiles[self.high] - low))
            else:
                spans.append((self.low, self.high - self.low))
        for channel, (summary, (_, span)) in enumerate(zip(summaries, spans, strict=True)):
            if span <= 0 and summary.minimum < summary.maximum:
                raise SourceError(
                    f"Expected channel {channel} to have values to normalise by, but the two that "
                    f"{self} takes are equal, although it reaches from {summary.minimum} to "
                    f"{summary.maximum}: probably nearly all of it is one value, or a few extreme "
                    f"pixels hide the rest. Clip them, or normalise by a fixed range."
                )
        return [offset for offset, _ in spans], [1 / span if span else 1.0 for _, span in spans]


def summarise(image: NDArray[np.generic], percentiles: tuple[float, ...]) -> list[Summary]:
    """The statistics of an image in memory, (C, ...): one summary per channel.

    Raises SourceError for values that are not finite.
    """
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise SourceError(
            "Expected finite pixel values, got NaN or infinity: replace them before predicting."
        )
    summaries = []
    for channel in image:
        span = (float(channel.min()), float(channel.max()))
        bins = Bins.for_dtype(image.dtype) or Bins.for_span(*span)
        summaries.append(Summary.of(bins, bins.count(channel), percentiles))
    return summaries
