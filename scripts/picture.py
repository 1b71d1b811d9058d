"""Draw a part of a result as a PNG: the image, its mask, and the mask's outline on the image.

python scripts/picture.py results/slide/slide.ome.zarr slide.png --size 512
"""

import argparse
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import zarr
from numpy.typing import NDArray

GAP = 8
OUTLINE = (255, 230, 0)


def picture(store: Path, start: tuple[int, int], size: int, plane: int) -> NDArray[np.uint8]:
    """Three panels side by side, (Y, X, 3): image, mask, outline. `start` is (y, x)."""
    y, x = (slice(a, a + size) for a in start)
    image, mask = arrays(store)
    axes = image.metadata.dimension_names
    refuse_outside(dict(zip(axes, image.shape, strict=True)), (plane, *start), size)
    index = tuple({"y": y, "x": x, "z": plane, "t": 0}.get(a, slice(None)) for a in axes)
    pixels = np.asarray(image[index])
    found = np.asarray(mask[tuple({"y": y, "x": x}.get(a, plane) for a in axes if a != "c")]) > 0
    rgb = np.moveaxis(pixels[:3], 0, -1) if "c" in axes else pixels[..., np.newaxis]
    if rgb.dtype != np.uint8:
        low, high = np.percentile(rgb, (0.5, 99.8))
        rgb = np.clip((rgb - low) / max(high - low, 1) * 255, 0, 255).astype(np.uint8)
    rgb = np.broadcast_to(rgb[..., :3], (*found.shape, 3))
    outlined = np.where(outline(found)[..., np.newaxis], np.uint8(OUTLINE), rgb)
    panels = [rgb, np.repeat(found[..., np.newaxis] * np.uint8(255), 3, axis=-1), outlined]
    gap = np.full((found.shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)


def arrays(store: Path) -> tuple[zarr.Array[Any], zarr.Array[Any]]:
    """The image and the mask of a result. Raises SystemExit, with a sentence, if one is missing."""
    try:
        return zarr.open_array(store / "0"), zarr.open_array(store / "labels" / "mask" / "0")
    except FileNotFoundError:
        raise SystemExit(
            f"Expected {store} to hold an image and labels/mask, as stitch makes them, and found "
            f"none. Name the folder that ends with .ome.zarr, of a run with `stitch: image: true`."
        ) from None


def refuse_outside(sizes: dict[str, int], start: tuple[int, int, int], size: int) -> None:
    """Raise SystemExit, with a sentence, where the part that starts at z, y, x is not there."""
    ends = (sizes.get("z", 1), sizes["y"], sizes["x"])
    if size < 1 or not all(0 <= a < end for a, end in zip(start, ends, strict=True)):
        raise SystemExit(
            f"Expected a part inside the image of {ends} pixels in z, y, x, got one of {size} "
            f"pixels that starts at {start}. Positions count from 0."
        )


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask (Y, X) that have a neighbour outside it."""
    padded = np.pad(mask, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("png", type=Path)
    parser.add_argument("--start", type=int, nargs=2, default=(0, 0), metavar=("Y", "X"))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--plane", type=int, default=0)
    given = parser.parse_args()
    drawn = picture(given.store, tuple(given.start), given.size, given.plane)
    given.png.write_bytes(imagecodecs.png_encode(drawn))
