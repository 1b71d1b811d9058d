"""Half the size: means of pixels, the most frequent of labels. NumPy only; `pyramid` stores them.

A mean is exact for every integer dtype: the sum is taken in a wider integer, and where there is
none, in parts that cannot overflow.
"""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.planning.axes import Sizes

Values = NDArray[Any]

STRIP = 1 << 18  # values that are combined at once: more would leave the CPU's cache


def downsample(values: Values, factors: Sizes, kind: str) -> Values:
    """Halve the axes of `values` (t, c, z, y, x) whose factor on (t, z, y, x) is 2.

    At an odd end a pixel stands for the pixels there are. Beside the result, memory holds copies
    of one strip of rows only.

    kind  "mean" or "mode"
    """
    five = (factors[0], 1, *factors[1:])
    small = np.empty([-(-n // f) for n, f in zip(values.shape, five, strict=True)], values.dtype)
    combine = mean if kind == "mean" else mode
    rows = max(1, STRIP * small.shape[3] // values.size)
    for y in range(0, small.shape[3], rows):
        strip = _whole(values[:, :, :, y * five[3] : (y + rows) * five[3]], five)
        small[:, :, :, y : y + rows] = combine(
            [
                np.ascontiguousarray(
                    strip[tuple(slice(a, None, f) for a, f in zip(start, five, strict=True))]
                )
                for start in product(*(range(f) for f in five))
            ]
        )
    return small


def mean(samples: list[Values]) -> Values:
    """The mean of arrays of one shape and dtype; integers are rounded, halves up.

    There are 1, 2, 4, 8 or 16 arrays: two for each axis that is halved.
    """
    dtype = samples[0].dtype
    if dtype.kind not in "iu":
        return _mean_of_floats(samples)
    if dtype.itemsize == 8:
        return _mean_in_parts(samples)
    wide = np.uint16 if dtype == np.uint8 else np.int64
    sums: Values = samples[0].astype(wide)
    for sample in samples[1:]:
        np.add(sums, sample, out=sums, casting="unsafe")
    half, shift = _half_and_shift(samples)
    means: Values = np.right_shift(sums + half, shift).astype(dtype)
    return means


def mode(samples: list[Values]) -> Values:
    """The most frequent value at each place of arrays of one shape; of several, the smallest."""
    ordered = list(samples)
    for end in range(len(ordered) - 1, 0, -1):  # sorts the samples of each place
        for i in range(end):
            low, high = ordered[i], ordered[i + 1]
            ordered[i], ordered[i + 1] = np.minimum(low, high), np.maximum(low, high)
    best = ordered[0]
    run = most = np.ones(best.shape, np.uint8)
    for before, here in pairwise(ordered):
        run = run * (before == here) + np.uint8(1)
        best = np.where(run > most, here, best)
        most = np.maximum(most, run)
    return best


def _whole(strip: Values, factors: Sizes) -> Values:
    """The strip, its last pixels repeated where its sides are no multiples of the factors."""
    missing = [(0, -n % f) for n, f in zip(strip.shape, factors, strict=True)]
    return np.pad(strip, missing, mode="edge") if any(after for _, after in missing) else strip


def _mean_of_floats(samples: list[Values]) -> Values:
    """Summed in float64. Where that overflows, the mean does not: the samples are divided first."""
    with np.errstate(over="ignore"):
        total = np.sum(samples, axis=0, dtype=np.float64)
    means: Values = np.asarray(total / len(samples))
    too_large = np.isinf(means)
    if too_large.any():
        parts = [sample[too_large].astype(np.float64) / len(samples) for sample in samples]
        means[too_large] = np.sum(parts, axis=0)
    return means.astype(samples[0].dtype)


def _mean_in_parts(samples: list[Values]) -> Values:
    """The mean of 64-bit integers, for whose sum there is no wider integer.

    With n samples, each is n * q + r with 0 <= r < n. So their mean is the sum of all q, which
    does not overflow, plus the mean of all r, which are small.
    """
    dtype = samples[0].dtype
    half, shift = _half_and_shift(samples)
    means = np.zeros_like(samples[0])
    rests = np.full_like(samples[0], half)
    for sample in samples:
        means += sample >> dtype.type(shift)
        rests += sample & dtype.type(len(samples) - 1)
    means += rests >> dtype.type(shift)
    return means


def _half_and_shift(samples: list[Values]) -> tuple[int, int]:
    """What rounds a sum of the samples, and the shift that divides it.

    Their number is a power of two, and shifting rounds down, below zero too.
    """
    return len(samples) // 2, len(samples).bit_length() - 1
