"""Smaller levels are exact: against Python's own integers, which do not overflow."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unet.stages import downsample as module
from unet.stages.downsample import downsample

INTEGERS = [f"{sign}int{bits}" for sign in ("u", "") for bits in (8, 16, 32, 64)]
FACTORS = st.tuples(*[st.sampled_from((1, 2))] * 4)
SHAPES = st.tuples(*[st.integers(1, 5)] * 5)


def values_of(dtype):
    """Any values, and often the smallest, the largest and their neighbours."""
    if np.dtype(dtype).kind == "f":
        return st.floats(allow_nan=False, allow_infinity=False, width=8 * np.dtype(dtype).itemsize)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    extremes = (low, low + 1, high // 2, high // 2 + 1, high - 1, high)
    return st.sampled_from(extremes) | st.integers(low, high)


def arrays_of(dtype, elements):
    return hnp.arrays(dtype, SHAPES, elements=elements)


def samples_at(values, factors, place):
    """The pixels of the level above that the pixel at `place` of the level stands for."""
    five = (factors[0], 1, *factors[1:])
    ranges = (
        range(p * f, min((p + 1) * f, n)) for p, f, n in zip(place, five, values.shape, strict=True)
    )
    return [values[position].item() for position in product(*ranges)]


def shape_of(values, factors):
    t, c, z, y, x = values.shape
    return (
        -(-t // factors[0]),
        c,
        *(-(-n // f) for n, f in zip((z, y, x), factors[1:], strict=True)),
    )


@pytest.mark.parametrize("dtype", INTEGERS)
@given(data=st.data(), factors=FACTORS)
def test_a_mean_of_integers_is_exact_and_halves_are_rounded_up(dtype, data, factors):
    values = data.draw(arrays_of(dtype, values_of(dtype)))
    small = downsample(values, factors, "mean")
    assert small.dtype == values.dtype
    assert small.shape == shape_of(values, factors)
    for place in np.ndindex(small.shape):
        above = samples_at(values, factors, place)
        assert int(small[place]) == (2 * sum(above) + len(above)) // (2 * len(above))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(data=st.data(), factors=FACTORS)
def test_a_mean_of_floats_is_right_to_the_last_bits(dtype, data, factors):
    """To within half a step of its dtype, and what summing 16 float64 values may lose."""
    values, limits = data.draw(arrays_of(dtype, values_of(dtype))), np.finfo(dtype)
    small = downsample(values, factors, "mean")
    assert small.dtype == values.dtype
    assert small.shape == shape_of(values, factors)
    for place in np.ndindex(small.shape):
        above = [Fraction(value) for value in samples_at(values, factors, place)]
        exact = sum(above) / len(above)
        half_a_step = abs(exact) * Fraction(float(limits.eps)) / 2
        half_a_step += Fraction(float(limits.smallest_subnormal)) / 2
        summing = 16 * Fraction(2) ** -53 * max(map(abs, above))
        assert abs(Fraction(small[place].item()) - exact) <= half_a_step + summing


@pytest.mark.parametrize("dtype", INTEGERS)
@given(data=st.data(), factors=FACTORS)
def test_a_mode_is_the_most_frequent_label_and_of_several_the_smallest(dtype, data, factors):
    few = data.draw(st.lists(values_of(dtype), min_size=1, max_size=4))
    values = data.draw(arrays_of(dtype, st.sampled_from(few)))
    small = downsample(values, factors, "mode")
    assert small.dtype == values.dtype
    assert small.shape == shape_of(values, factors)
    for place in np.ndindex(small.shape):
        counts = Counter(samples_at(values, factors, place))
        assert small[place] == min(counts, key=lambda label: (-counts[label], label))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("int64", 2**62),
        ("int64", -(2**63)),
        ("uint64", 2**64 - 1),
        ("float32", float(np.finfo("float32").max)),
        ("float64", float(np.finfo("float64").max)),
        ("float64", 5e-324),
    ],
)
def test_equal_pixels_stay_what_they_are(dtype, value):
    values = np.full((2, 1, 2, 4, 4), value, dtype)
    assert np.array_equal(downsample(values, (2, 2, 2, 2), "mean"), values[:1, :, :1, :2, :2])


@pytest.mark.parametrize("kind", ["mean", "mode"])
def test_strips_do_not_show(kind, monkeypatch):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, (1, 2, 3, 37, 23)).astype("uint16")
    whole = downsample(values, (1, 2, 2, 2), kind)
    monkeypatch.setattr(module, "STRIP", 1)
    assert np.array_equal(downsample(values, (1, 2, 2, 2), kind), whole)
