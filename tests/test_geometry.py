"""The laws of tiling, as properties of integers."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet.planning import geometry
from unet.planning.geometry import BlockGrid, Box, mirror, read_mirrored, slab_range
from unet.planning.lattice import Lattice

SIZES = st.integers(1, 60)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9), SIZES, SIZES)


@st.composite
def tilings(draw):
    """The blocks of an image, a core of it, and the lattice that they lie on."""
    shape = draw(SHAPES)
    stride = (1, *(draw(st.sampled_from([1, 2, 4, 6])) for _ in range(3)))
    block = tuple(s * draw(st.integers(1, 5)) for s in stride)
    core = tuple(s * draw(st.integers(1, 4)) for s in stride)
    return BlockGrid(shape, block), core, Lattice(stride, ((0, 0),) * 4, 3)


@given(tilings())
def test_blocks_partition_the_image(tiling):
    grid, _, _ = tiling
    times = np.zeros(grid.shape, int)
    for index in range(grid.count):
        times[grid.box(index).slices] += 1
    assert (times == 1).all()


@given(tilings())
def test_cores_partition_their_block_and_start_on_the_lattice(tiling):
    grid, core, lattice = tiling
    stride = lattice.stride
    times = np.zeros([n + s for n, s in zip(grid.shape, stride, strict=True)], int)
    for index in range(grid.count):
        box = grid.box(index)
        for inner in lattice.cores(box, core):
            assert all(a % s == 0 for a, s in zip(inner.start, stride, strict=True))
            assert all(n % s == 0 for n, s in zip(inner.shape, stride, strict=True))
            assert all(n <= c for n, c in zip(inner.shape, core, strict=True))
            times[inner.clip(box.stop).slices] += 1
    inside = tuple(slice(n) for n in grid.shape)
    assert (times[inside] == 1).all()
    times[inside] = 0
    assert not times.any()


@given(tilings())
def test_cores_are_counted_as_they_are_listed(tiling):
    grid, core, lattice = tiling
    listed = [
        inner.shape for index in range(grid.count) for inner in lattice.cores(grid.box(index), core)
    ]
    counted = lattice.core_sizes(grid, core)
    for sizes in product(*counted):
        times = math.prod(axis[size] for axis, size in zip(counted, sizes, strict=True))
        assert listed.count(sizes) == times
    assert len(listed) == math.prod(axis.total() for axis in counted)


@given(st.integers(0, 500), st.integers(1, 40))
def test_slabs_partition_the_blocks(blocks, slabs):
    ranges = [slab_range(slab, slabs, blocks) for slab in range(slabs)]
    assert [block for each in ranges for block in each] == list(range(blocks))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@given(st.integers(1, 20), st.integers(0, 70), st.integers(0, 70))
def test_mirror_is_what_numpy_calls_reflect(size, before, after):
    expected = np.pad(np.arange(size), (before, after), mode="reflect" if size > 1 else "edge")
    assert np.array_equal(mirror(-before, size + after, size), expected)


@given(SHAPES, st.data())
def test_a_mirrored_read_is_a_part_of_the_padded_image(shape, data):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 99, (shape[0], 2, *shape[1:]))
    halo = 30
    modes = [np.pad(np.arange(n), halo, mode="reflect" if n > 1 else "edge") for n in shape]
    start = tuple(data.draw(st.integers(-halo, n - 1)) for n in shape)
    stop = tuple(data.draw(st.integers(a + 1, n + halo)) for a, n in zip(start, shape, strict=True))

    def read(box):
        assert all(0 <= a < b <= n for a, b, n in zip(box.start, box.stop, shape, strict=True))
        t, *rest = box.slices
        return image[(t, slice(None), *rest)]

    found = read_mirrored(read, Box(start, stop), shape)
    t, z, y, x = (m[a + halo : b + halo] for m, a, b in zip(modes, start, stop, strict=True))
    assert np.array_equal(found, image[np.ix_(t, range(2), z, y, x)])


def test_a_read_inside_the_image_is_no_larger_than_asked():
    asked = []
    read_mirrored(
        lambda box: asked.append(box) or np.zeros((1, 1, 1, 4, 5)),
        Box((0, 0, 3, 4), (1, 1, 7, 9)),
        (1, 1, 20, 20),
    )
    assert asked == [Box((0, 0, 3, 4), (1, 1, 7, 9))]


@pytest.mark.parametrize(
    ("piece", "shape", "spatial", "pixels", "expected"),
    [
        ((1, 1, 512, 512), (1, 1, 10_000, 10_000), 2, 1 << 22, (1, 1, 2048, 2048)),
        ((1, 1, 256, 256), (1, 60, 256, 256), 2, 1 << 22, (1, 64, 256, 256)),
        ((1, 64, 64, 64), (1, 500, 500, 500), 3, 1 << 22, (1, 128, 128, 256)),
        ((1, 1, 16, 16), (1, 1, 1, 1), 2, 1 << 22, (1, 1, 16, 16)),
    ],
)
def test_a_block_grows_in_the_plane_first(piece, shape, spatial, pixels, expected):
    grown = geometry.grow_block(piece, shape, spatial, pixels)
    assert sorted(grown) == sorted(expected)
    assert math.prod(grown) >= min(pixels, math.prod(shape))
