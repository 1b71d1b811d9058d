"""What the plan knows of an image: where its pixels lie, and, once it was read, what they are."""

from __future__ import annotations

from dataclasses import dataclass

from unet.planning.axes import Sizes


@dataclass(frozen=True)
class ImageRef:
    """Where an image's pixels lie, in the array of a Zarr store; sizes are (t, z, y, x).

    copied      whether ingest made the store; else it is the user's own and only read
    axes        of the array, in its own order
    channels    of the array that are used, in this order; None for all
    pixel_size  micrometres by axis; an axis without one counts pixels
    origin      where the first pixel lies by axis, in pixels; an axis without one starts at 0
    block       of the shards of a copy; None of an image that is read in place
    """

    store: str
    copied: bool
    array: str
    axes: str
    channels: tuple[int, ...] | None
    shape: Sizes
    dtype: str
    channel_names: tuple[str, ...]
    pixel_size: dict[str, float]
    origin: dict[str, float]
    block: Sizes | None


@dataclass(frozen=True)
class IngestedImage(ImageRef):
    """An image that was read once from end to end.

    data_range       the smallest and the largest value
    contrast_limits  of each channel, the values that a viewer shows as black and as white
    digest           names the pixels: equal images have equal digests
    file_signature   of an image that is read in place, names its files as they were when it was
                     ingested; None of a copy
    """

    data_range: tuple[float, float]
    contrast_limits: tuple[tuple[float, float], ...]
    digest: str
    file_signature: str | None
