"""How pieces cover pages and pages a level: on integers, without a file."""

from __future__ import annotations

import numpy as np
import pytest

from unet.errors import SourceError
from unet.sources.tiff.pages import PageGrid, paste

STACK = PageGrid.of("a.tif", (5, 30, 400, 300), (1, 1, 400, 300, 1), (1, 1, 256, 256, 1))


def test_the_first_dimensions_of_a_level_count_pages():
    assert (STACK.leading, STACK.pages) == (2, 150)
    assert STACK.chunks == (1, 1, 256, 256)
    where = (slice(1, 3), slice(4, 6), slice(0, 10), slice(0, 10))
    assert STACK.pages_in(where) == [34, 35, 64, 65]
    assert STACK.on_page(where) == tuple(
        slice(a, b) for a, b in ((0, 1), (0, 1), (0, 10), (0, 10), (0, 1))
    )


def test_samples_lie_within_a_page():
    grid = PageGrid.of("a.tif", (7, 60, 70, 3), (1, 1, 60, 70, 3), (1, 1, 32, 32, 3))
    assert (grid.leading, grid.chunks) == (1, (1, 32, 32, 3))


def test_pages_that_do_not_make_up_a_level_are_refused():
    with pytest.raises(SourceError, match=r"a\.tif: its pages of .* do not make up its shape"):
        PageGrid.of("a.tif", (5, 400, 300), (1, 1, 400, 299, 1), (1, 1, 256, 256, 1))


def test_pasted_pieces_make_up_the_box():
    page = np.arange(400 * 300).reshape(1, 1, 400, 300, 1)
    padded = np.pad(page, ((0, 0), (0, 0), (0, 112), (0, 212), (0, 0)))
    where = STACK.on_page((slice(0, 1), slice(0, 1), slice(200, 390), slice(250, 300)))
    out = np.full((1, 1, 190, 50, 1), -1)
    numbers = []
    for number, (_, _, y, x, _) in STACK.pieces_in(where):
        numbers.append(number)
        paste(padded[:, :, y : y + 256, x : x + 256], (0, 0, y, x, 0), out, where)
    assert numbers == [0, 1, 2, 3]
    assert np.array_equal(out, page[where])
