"""Draw a part of a result as a PNG: the image, its mask, and the mask's outline on the image.

python scripts/picture.py results/slide/slide.ome.zarr slide.png --size 512
"""

import argparse
from contextlib import ExitStack, closing
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from unet.errors import UserError
from unet.evaluation.picture import image_to_rgb, join_panels, mask_to_rgb
from unet.planning.geometry import Box, Sizes
from unet.sources import open_source
from unet.sources.base import Source, SourceSpec

GAP = 8
OUTLINE = (255, 230, 0)


def picture(
    store: str, start: tuple[int, int] | None, size: int, plane: int | None
) -> NDArray[np.uint8]:
    """Three panels side by side, (Y, X, 3): image, mask, outline.

    start  (y, x) of the part; None for the middle
    plane  z of the part; None for the middle
    """
    with ExitStack() as stack:
        image, mask = (stack.enter_context(closing(source)) for source in sources(store))
        middle = [max(0, n - size) // 2 for n in image.shape[3:]]
        z = image.shape[2] // 2 if plane is None else plane
        box = part(image.shape, (z, *(start or middle)), size)
        pixels, foreground = image.read(box)[0, :3, 0], mask.read(box)[0, 0, 0] > 0
    rgb = image_to_rgb(pixels)
    outlined = np.where(outline(foreground)[..., np.newaxis], np.uint8(OUTLINE), rgb)
    return join_panels([rgb, mask_to_rgb(foreground), outlined], GAP)


def sources(store: str) -> tuple[Source, Source]:
    """The image and the mask of a result. Raises SystemExit, with a sentence, if one is missing."""
    try:
        return open_source(SourceSpec(store)), open_source(
            SourceSpec(f"{store.rstrip('/')}/labels/mask")
        )
    except UserError as error:
        raise SystemExit(
            f"Expected {store} to hold an image and labels/mask, as stitch makes them: {error} "
            f"Name the folder that ends with .ome.zarr, of a run with `stitch: image: true`."
        ) from None


def part(shape: Sizes, start: tuple[int, int, int], size: int) -> Box:
    """The part that starts at z, y, x of an image, clipped to it; SystemExit if it is outside."""
    ends = shape[2:]
    if size < 1 or not all(0 <= a < end for a, end in zip(start, ends, strict=True)):
        raise SystemExit(
            f"Expected a part inside the image of {ends} pixels in z, y, x, got one of {size} "
            f"pixels that starts at {start}. Positions count from 0."
        )
    z, y, x = start
    return Box((0, *start), (1, z + 1, y + size, x + size)).clip((1, *ends))


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask (Y, X) that have a neighbour outside it."""
    padded = np.pad(mask, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("png", type=Path)
    parser.add_argument("--start", type=int, nargs=2, metavar=("Y", "X"), help="default the middle")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--plane", type=int, help="default the middle")
    options = parser.parse_args()
    start = tuple(options.start) if options.start else None
    panels = picture(options.store, start, options.size, options.plane)
    options.png.write_bytes(imagecodecs.png_encode(panels))
