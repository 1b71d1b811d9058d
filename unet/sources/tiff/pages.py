"""How a level is made of pages, and a page of pieces: integers only.

A level such as (t, z, y, x) is a row of pages, since TIFF knows only planes and, rarely, volumes:

    (5, 30, 4000, 3000)     a level, whose first two dimensions count pages
            4000, 3000      150 pages
             256,  256      each of 16 x 12 = 192 tiles, decoded one by one

tifffile describes a page by five dimensions, most of them 1: separate samples, z, y, x, samples.
A piece is a tile or a strip, with the same five dimensions. The last pieces may reach beyond the
page.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Self

import numpy as np
from numpy.typing import NDArray

from unet.errors import SourceError
from unet.planning.axes import Sizes

Where = tuple[slice, ...]


@dataclass(frozen=True)
class PageGrid:
    """The pages of a level, and the pieces of each.

    level    shape of the level, on its own dimensions
    page     shape of a page, on the five dimensions
    piece    shape of a tile or strip, on the five dimensions
    leading  how many dimensions of the level count pages
    """

    level: Sizes
    page: Sizes
    piece: Sizes
    leading: int

    @classmethod
    def of(cls, path: str, level: Sizes, page: Sizes, piece: Sizes) -> Self:
        """Raises SourceError, which names `path`, where such pages do not make up the level."""
        return cls(level, page, piece, _count_leading(path, level, page))

    @property
    def pages(self) -> int:
        """How many pages there are."""
        return math.prod(self.level[: self.leading])

    @property
    def chunks(self) -> Sizes:
        """The shape of a piece, on the dimensions of the level."""
        long = [p for p, size in zip(self.piece, self.page, strict=True) if size > 1]
        inner = (long.pop(0) if size > 1 else 1 for size in self.level[self.leading :])
        return (1,) * self.leading + tuple(inner)

    def pages_in(self, where: Where) -> list[int]:
        """The numbers of the pages that a box of the level touches, in the order of the box."""
        numbers = np.arange(self.pages).reshape(self.level[: self.leading])
        return [int(number) for number in numbers[where[: self.leading]].flat]

    def on_page(self, where: Where) -> Where:
        """The part of a box of the level that lies on each page, on the five dimensions."""
        inner = zip(where[self.leading :], self.level[self.leading :], strict=True)
        long = [part for part, size in inner if size > 1]
        return tuple(long.pop(0) if size > 1 else slice(0, 1) for size in self.page)

    def pieces_in(self, where: Where) -> Iterator[tuple[int, Sizes]]:
        """The number and the origin of each piece that a box of a page touches."""
        counts = [-(-size // p) for size, p in zip(self.page, self.piece, strict=True)]
        ranges = [
            range(part.start // p, -(-part.stop // p))
            for part, p in zip(where, self.piece, strict=True)
        ]
        for position in product(*ranges):
            number = int(np.ravel_multi_index(position, counts))
            yield number, tuple(n * p for n, p in zip(position, self.piece, strict=True))


def paste(
    piece: NDArray[np.generic], origin: Sizes, out: NDArray[np.generic], where: Where
) -> None:
    """Copy the part of a piece that lies in the box `where` into `out`, which holds that box."""
    targets, sources = [], []
    for start, length, part in zip(origin, piece.shape, where, strict=True):
        first, last = max(start, part.start), min(start + length, part.stop)
        if first >= last:
            return
        targets.append(slice(first - part.start, last - part.start))
        sources.append(slice(first - start, last - start))
    out[tuple(targets)] = piece[tuple(sources)]


def _count_leading(path: str, level: Sizes, page: Sizes) -> int:
    """How many dimensions of the level count pages; the others lie within a page."""
    inner = [size for size in page if size > 1]
    for leading in range(len(level) + 1):
        if [size for size in level[leading:] if size > 1] == inner:
            return leading
    raise SourceError(
        f"{path}: its pages of {page} do not make up its shape {level}. Its metadata are damaged, "
        "or written by a program that this one does not know; convert it to OME-TIFF."
    )
