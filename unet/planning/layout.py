"""How arrays lie on disk, in integers: chunks, shards, and the levels of a pyramid."""

from __future__ import annotations

from dataclasses import dataclass

from unet.planning.axes import ORDER, Sizes, with_channels
from unet.planning.geometry import grow_block, round_up

CHUNK = 512
BLOCK_PIXELS = 1 << 22  # 2048^2, 64 x 256^2: a float32 shard of 16 MiB, a few seconds of a GPU


@dataclass(frozen=True)
class Layout:
    """How an array lies on disk; all sizes are (t, c, z, y, x), whatever axes the array has.

    axes   the axes that the array has, a part of "tczyx" in this order
    chunk  what is compressed together
    shard  what is one file, a multiple of `chunk`; all channels are in one shard
    """

    axes: str
    shape: Sizes
    dtype: str
    chunk: Sizes
    shard: Sizes

    def on_disk(self, sizes: Sizes) -> Sizes:
        """The numbers of `sizes` that belong to the array's own axes."""
        return tuple(size for size, axis in zip(sizes, ORDER, strict=True) if axis in self.axes)


def image_chunk(shape: Sizes) -> Sizes:
    """The chunk of an image (t, z, y, x): planes of 512 x 512, or smaller where the image is."""
    return (1, 1, *(min(CHUNK, round_up(side, 16)) for side in shape[2:]))


def image_layout(axes: str, shape: Sizes, channels: int, dtype: str, block: Sizes) -> Layout:
    """The layout of an image, or of a level of it; `shape` and `block` are (t, z, y, x)."""
    return Layout(
        axes=axes,
        shape=with_channels(shape, channels),
        dtype=dtype,
        chunk=with_channels(image_chunk(shape), 1),
        shard=with_channels(block, channels),
    )


def image_block(shape: Sizes) -> Sizes:
    """The block of an image whose source does not ask for another."""
    return grow_block(image_chunk(shape), shape, 2, BLOCK_PIXELS)


def pyramid(shape: Sizes, spacing: tuple[float, float, float]) -> list[Sizes]:
    """The levels of a pyramid: by how much each is smaller than the image, on (t, z, y, x).

    y and x halve until both fit a chunk. z halves with them once its pixels are no longer than
    theirs, so that a level's pixels come as near to cubes as halving brings them.

    spacing  pixel size in z, y, x, in one unit
    """
    levels: list[Sizes] = [(1, 1, 1, 1)]
    while any(-(-n // f) > CHUNK for n, f in zip(shape[2:], levels[-1][2:], strict=True)):
        t, z, y, x = levels[-1]
        deepens = shape[1] > z and spacing[0] * z <= spacing[2] * x
        levels.append((t, 2 * z if deepens else z, 2 * y, 2 * x))
    return levels
