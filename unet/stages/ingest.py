"""ingest: from any source to a Zarr image with axes, pixel size and statistics.

A source that is Zarr already is read where it lies; any other is copied, shard by shard, into
`image.ome.zarr`. Then the image is read once: its histogram is what normalisation is derived from,
and its digest is what names it, so that a file that was only touched, or moved, gives the same
results without computing them again.

Peak memory is a few blocks a worker, whatever the size of the image.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unet.errors import SourceError
from unet.execution import pool
from unet.model.folder import find_model
from unet.model.normalisation import BINS, Bins, Summary
from unet.planning.axes import GRID, ORDER
from unet.planning.geometry import Box, Sizes, block_box, grow_block, round_up
from unet.planning.layout import BLOCK_PIXELS, image_chunk, image_layout
from unet.planning.plan import ImageRef
from unet.sources import open_source, source_files
from unet.sources.base import Source, SourceSpec
from unet.storage import ome, store
from unet.storage.ledger import Written
from unet.storage.location import check, locate, version
from unet.storage.manifest import fingerprint, write_manifest, write_whole
from unet.storage.workspace import Target, Workspace, finish

log = logging.getLogger(__name__)

LARGEST_PIECE = 1 << 30
HISTOGRAMS = "histograms.npy"
IMAGE = "image.ome.zarr"
SHOWN_PERCENTILES = (0.1, 99.9)
READERS = 1  # counted up when a reader gives other pixels than before
DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class IngestManifest:
    """The manifest of the stage.

    image       where the pixels are and what they are
    histograms  file of the counts, (channels, 65536) int64, beside the manifest
    bins        what the counts of each channel are of
    """

    image: ImageRef
    histograms: str
    bins: tuple[Bins, ...]


@dataclass(frozen=True)
class CopyJob:
    """Copy a source into a Zarr array, one shard a block."""

    name: str
    source: SourceSpec
    image: ImageRef
    block: Sizes

    def open(self) -> Callable[[int], Written]:
        """Open the source on a worker; it is read by several threads at once."""
        source = open_source(self.source)
        target = store.open_pixels(locate(self.image.store), self.image.array, self.image.axes)

        def copy(index: int) -> Written:
            box = block_box(index, self.image.shape, self.block)
            pixels = source.read(box)
            if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
                raise _not_finite(self.source.path, box)
            target.write(box, pixels)
            return Written(target.settle(index, self.block))

        return copy


@dataclass(frozen=True)
class BlockSurvey:
    """What one block adds to the knowledge of its image; counts hold the filled bins only."""

    digest: bytes
    low: list[float]
    high: list[float]
    filled: list[NDArray[np.int64]]
    counts: list[NDArray[np.int64]]


@dataclass(frozen=True)
class SurveyJob:
    """Read a block back: its digest, its extremes and, where bins are known, its histogram."""

    name: str
    image: ImageRef
    block: Sizes
    bins: tuple[Bins, ...] | None

    def open(self) -> Callable[[int], BlockSurvey]:
        """Open the image on a worker."""
        image = self.image
        pixels = store.open_image(image)

        def survey(index: int) -> BlockSurvey:
            values = pixels.read(block_box(index, image.shape, self.block))
            low = [float(values[:, c].min()) for c in range(values.shape[1])]
            high = [float(values[:, c].max()) for c in range(values.shape[1])]
            if not all(map(math.isfinite, low + high)):
                raise _not_finite(image.store, block_box(index, image.shape, self.block))
            filled, counts = [], []
            for channel in range(values.shape[1]):
                part = values[:, channel]
                of_channel = self.bins[channel].count(part) if self.bins else np.zeros(0, int)
                filled.append(np.flatnonzero(of_channel))
                counts.append(of_channel[filled[-1]])
            digest = hashlib.sha256(np.ascontiguousarray(values).data).digest()
            return BlockSurvey(digest, low, high, filled, counts)

        return survey


def run(
    spec: SourceSpec, place: Workspace, machines: pool.Machines, model: str | None = None
) -> None:
    """Ingest one image and write its manifest.

    model  that the image is for, if it is known: channels and dimensions are then compared first

    Raises SourceError and ModelError, before anything is written, for what cannot be used.
    """
    check(locate(spec.path))
    check(place.home, to_write=True)
    source = open_source(spec)
    try:
        if model is not None:
            wanted = find_model(model)
            wanted.refuse_channels(source.channel_names, spec.path)
            wanted.refuse_plane(source.shape[2:], spec.path)
        image, block = _located(source, spec, place)
        held = math.prod(block) * len(image.channel_names) * np.dtype(image.dtype).itemsize
        count = store.block_count(image.shape, block)
        machines = machines.moving(count, held)
        with place.claimed(), pool.connect(machines) as client:
            if source.in_place is None:
                job = CopyJob(f"ingest {place.name}", _absolute(spec), image.absolute(), block)
                _copy(job, place, client, machines)
            image, ingested = _survey(image, block, place, client, machines)
    finally:
        source.close()
    write_manifest(place.manifest("ingest"), ingested)


def _located(source: Source, spec: SourceSpec, place: Workspace) -> tuple[ImageRef, Sizes]:
    """Where the image will be read from, and the blocks to copy or read it by."""
    shape = _grid_sizes(source.shape)
    pieces = _grid_sizes(source.chunks)
    there = source.in_place
    if there is None:
        identity = [[path, *version(locate(path))] for path in source_files(spec.path)]
        # A corrected pixel size is no other image, unless it is what chooses the level.
        read_as = spec if spec.level_pixel_size else replace(spec, pixel_size=None)
        work = place.work("ingest", fingerprint(read_as, identity, READERS))
        store_path, array, axes, channels = str(work / IMAGE), "0", source.axes, None
        # A block that asks the source to decode no piece twice, if it can be.
        piece = tuple(round_up(p, c) for p, c in zip(pieces, image_chunk(shape), strict=True))
        _refuse_large(piece, source, spec.path)
        block = grow_block(piece, shape, 2, BLOCK_PIXELS)
    else:
        store_path, array, axes = there.store, there.array, there.axes
        channels = there.channels if "c" in axes else None
        _refuse_large(pieces, source, spec.path)
        block = grow_block(pieces, shape, 2, BLOCK_PIXELS)
    image = ImageRef(
        store=store_path,
        copied=there is None,
        array=array,
        axes=axes,
        channels=channels,
        shape=shape,
        dtype=str(source.dtype),
        channel_names=source.channel_names,
        pixel_size=source.pixel_size,
        origin=source.origin,
        block=block if there is None else (),
    )
    return image, block


def _refuse_large(piece: Sizes, source: Source, path: str) -> None:
    """Raise SourceError if the smallest part of the image that can be read alone is too large."""
    size = math.prod(piece) * source.shape[1] * source.dtype.itemsize
    if size > LARGEST_PIECE:
        raise SourceError(
            f"Expected {path} to be stored in pieces that can be read alone, but its smallest is "
            f"{size / 1e9:.1f} GB once decoded. Convert it to a tiled TIFF or to OME-Zarr."
        )


def _copy(job: CopyJob, place: Workspace, client: pool.Client, machines: pool.Machines) -> None:
    image, block = job.image, job.block
    group = locate(image.store)
    channels = len(image.channel_names)
    layout = image_layout(image.axes, image.shape, channels, image.dtype, block)
    described = ome.multiscales(
        IMAGE.removesuffix(".zarr"), image.axes, image.pixel_size, [(1,) * 4], "mean"
    )
    store.write_attributes(group, described)
    pixels = store.create(group, image.array, layout)
    again = place.again.get("image copy", frozenset())
    target = Target(pixels, block, place.ledger(group.parent), again)
    count = store.block_count(image.shape, block)
    finish(client, job, target, range(count), "ingest", machines)
    store.sweep(group)


def _survey(
    image: ImageRef,
    block: Sizes,
    place: Workspace,
    client: pool.Client,
    machines: pool.Machines,
) -> tuple[ImageRef, IngestManifest]:
    """Read the image: once for 8 and 16 bit integers, else once more to know their span first."""
    count, channels = store.block_count(image.shape, block), len(image.channel_names)
    known = Bins.for_dtype(np.dtype(image.dtype))
    bins = None if known is None else (known,) * channels
    if not image.copied:
        image = replace(image, identity=store.identity(image))

    def read(bins: tuple[Bins, ...] | None) -> tuple[bytearray, list[float], list[float]]:
        digests = bytearray(count * DIGEST_BYTES)
        low, high = [math.inf] * channels, [-math.inf] * channels

        def add(index: int, found: BlockSurvey) -> None:
            digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES] = found.digest
            low[:] = map(min, low, found.low)
            high[:] = map(max, high, found.high)
            for total, filled, counts in zip(totals, found.filled, found.counts, strict=True):
                total[filled] += counts

        job = SurveyJob(f"survey {place.name}", image.absolute(), block, bins)
        blocks = iter(range(count))
        pool.run(client, job, blocks, add, machines.in_flight, machines.block_seconds)
        return digests, low, high

    totals = np.zeros((channels, BINS), np.int64)
    digests, low, high = read(bins)
    if bins is None:
        bins = tuple(map(Bins.for_span, low, high))
        digests, _, _ = read(bins)
    digest = fingerprint(hashlib.sha256(digests).hexdigest(), image.dtype, image.shape)
    content = io.BytesIO()  # numpy itself does not say that a disk is full
    np.save(content, totals)
    write_whole(place.root / HISTOGRAMS, content.getvalue())
    shown = _shown(image, bins, totals)
    image = replace(image, span=(min(low), max(high)), shown=shown, digest=digest)
    return image, IngestManifest(image, HISTOGRAMS, bins)


def _shown(
    image: ImageRef, bins: tuple[Bins, ...], counts: NDArray[np.int64]
) -> tuple[tuple[float, float], ...]:
    """Of each channel nearly all values: a few bright pixels must not leave the others black.

    8 bits are what a screen shows: they stay as they are, and so does their colour.
    """
    if image.dtype == "uint8":
        return ((0.0, 255.0),) * len(bins)
    spans = []
    for of_channel, counted in zip(bins, counts, strict=True):
        found = Summary.of(of_channel, counted, SHOWN_PERCENTILES)
        low, high = (found.percentiles[p] for p in SHOWN_PERCENTILES)
        spans.append((low, high) if low < high else (found.minimum, found.maximum))
    return tuple(spans)


def _absolute(spec: SourceSpec) -> SourceSpec:
    return replace(spec, path=str(locate(spec.path).absolute()))


def _grid_sizes(five: Sizes) -> Sizes:
    return tuple(size for size, axis in zip(five, ORDER, strict=True) if axis in GRID)


def _not_finite(path: str, box: Box) -> SourceError:
    return SourceError(
        f"Expected finite pixel values in {path}, got NaN or infinity at (t, z, y, x) = {box}. "
        f"Replace them before predicting, for instance by the background."
    )
