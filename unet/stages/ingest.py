"""ingest: from any source to a Zarr image with axes, pixel size and statistics.

A source that is Zarr already is read where it lies; any other is copied, shard by shard, into
`image.ome.zarr`. Then the image is read once. Its histogram is what normalisation is derived from.
Its digest names its pixels: a file that was only touched, or moved, gives the same results without
computing them again.

Peak memory is a few blocks for each worker, whatever the size of the image.
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

from unet.execution.machines import Machines
from unet.execution.pool import Pool, connect
from unet.execution.resume import resume
from unet.fingerprint import fingerprint
from unet.model.folder import find_model
from unet.model.normalisation import BINS, Bins, Summary
from unet.planning.axes import ORDER, Sizes, without_channels
from unet.planning.geometry import BlockGrid, grow_block, round_up
from unet.planning.image import ImageRef, IngestedImage
from unet.planning.layout import BLOCK_PIXELS, image_chunk
from unet.sources import open_source, source_files
from unet.sources.base import Source, SourceSpec
from unet.sources.image import refuse_large
from unet.stages.copy import COPY, FOLDER, CopyJob, create_copy, not_finite
from unet.stages.manifests import IngestManifest, absolute
from unet.storage.digest import digest
from unet.storage.location import check, locate, version
from unet.storage.manifest import write_manifest
from unet.storage.ownership import delete_partial_files, write_whole
from unet.storage.result_record import refuse_result_of_others
from unet.storage.store import ArrayRef, file_signature, open_image
from unet.storage.workspace import Workspace

log = logging.getLogger(__name__)

HISTOGRAMS = "histograms.npy"
CONTRAST_PERCENTILES = (0.1, 99.9)
READERS = 1  # counted up when a reader gives other pixels than before
DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class BlockSurvey:
    """What one block adds to the knowledge of its image, by channel.

    counts  of the bins of its histogram that are not empty, whose numbers are `bins`
    """

    digest: bytes
    low: list[float]
    high: list[float]
    bins: list[NDArray[np.int64]]
    counts: list[NDArray[np.int64]]


@dataclass(frozen=True)
class SurveyJob:
    """Read a block back: its digest, its extremes and, where bins are known, its histogram."""

    name: str
    image: ImageRef
    grid: BlockGrid
    bins: tuple[Bins, ...] | None

    def open(self) -> Callable[[int], BlockSurvey]:
        """Open the image on a worker."""
        pixels = open_image(self.image)

        def survey(index: int) -> BlockSurvey:
            box = self.grid.box(index)
            values = pixels.read(box)
            low = [float(values[:, c].min()) for c in range(values.shape[1])]
            high = [float(values[:, c].max()) for c in range(values.shape[1])]
            if not all(map(math.isfinite, low + high)):
                raise not_finite(self.image.store, box)
            filled, counts = [], []
            for channel in range(values.shape[1]):
                part = values[:, channel]
                of_channel = self.bins[channel].count(part) if self.bins else np.zeros(0, int)
                filled.append(np.flatnonzero(of_channel))
                counts.append(of_channel[filled[-1]])
            pixels_digest = hashlib.sha256(np.ascontiguousarray(values).data).digest()
            return BlockSurvey(pixels_digest, low, high, filled, counts)

        return survey


class Survey:
    """What all blocks of an image say together: digest, extremes and histograms by channel."""

    def __init__(self, blocks: int, channels: int) -> None:
        self._digests = bytearray(blocks * DIGEST_BYTES)
        self.low, self.high = [math.inf] * channels, [-math.inf] * channels
        self.counts = np.zeros((channels, BINS), np.int64)

    def add(self, index: int, block: BlockSurvey) -> None:
        """Add block number `index`; the order does not matter."""
        self._digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES] = block.digest
        self.low = list(map(min, self.low, block.low))
        self.high = list(map(max, self.high, block.high))
        for total, bins, counts in zip(self.counts, block.bins, block.counts, strict=True):
            total[bins] += counts

    @property
    def digest(self) -> str:
        """Names the pixels of all blocks, in their order."""
        return hashlib.sha256(self._digests).hexdigest()


def run(
    spec: SourceSpec, workspace: Workspace, machines: Machines, model: str | None = None
) -> None:
    """Ingest one image and write its manifest.

    model  that the image is for, if it is known: channels and dimensions are then compared first

    Raises SourceError and ModelError, before anything is written, for what cannot be used.
    """
    check(locate(spec.path))
    check(workspace.home)
    source = open_source(spec)
    try:
        if model is not None:
            model_spec = find_model(model)
            model_spec.refuse_channels(source.channel_names, spec.path)
            model_spec.refuse_plane(source.shape[2:], spec.path)
        image, block = _locate_image(source, spec, workspace)
        grid = BlockGrid(image.shape, block)
        block_bytes = math.prod(block) * len(image.channel_names) * np.dtype(image.dtype).itemsize
        machines = machines.moving(grid.count, block_bytes)
        with workspace.lock():
            refuse_result_of_others(workspace.records, workspace.result, lambda _: True)
            with connect(machines) as pool:
                if image.copied:
                    _copy(spec, image, workspace, pool)
                ingested = _survey(image, grid, workspace, pool)
    finally:
        source.close()
    write_manifest(workspace.manifest("ingest"), ingested)


def _locate_image(source: Source, spec: SourceSpec, workspace: Workspace) -> tuple[ImageRef, Sizes]:
    """Where the image will be read from, and the blocks to copy or read it by."""
    shape = without_channels(source.shape)
    pieces = without_channels(source.chunks)
    pixel_bytes = source.shape[1] * source.dtype.itemsize
    in_place = source.in_place
    if in_place is None:
        versions = [[path, *version(locate(path))] for path in source_files(spec.path)]
        # A corrected pixel size makes no other image, unless it chooses the level.
        read_as = spec if spec.level_pixel_size else replace(spec, pixel_size=None)
        work = workspace.work("ingest", fingerprint(read_as, versions, READERS))
        axes = "".join(axis for axis in ORDER if axis in source.axes)
        store_path, array, channels = str(work / FOLDER), "0", None
        # A block of whole pieces of the source, so that no piece is decoded twice.
        piece = tuple(round_up(p, c) for p, c in zip(pieces, image_chunk(shape), strict=True))
        refuse_large(spec.path, math.prod(piece) * pixel_bytes)
        block = grow_block(piece, shape, 2, BLOCK_PIXELS)
    else:
        store_path, array, axes = in_place.store, in_place.array, in_place.axes
        channels = in_place.channels if "c" in axes else None
        refuse_large(spec.path, math.prod(pieces) * pixel_bytes)
        block = grow_block(pieces, shape, 2, BLOCK_PIXELS)
    image = ImageRef(
        store=store_path,
        copied=in_place is None,
        array=array,
        axes=axes,
        channels=channels,
        shape=shape,
        dtype=str(source.dtype),
        channel_names=source.channel_names,
        pixel_size=source.pixel_size,
        origin=source.origin,
        block=block if in_place is None else None,
    )
    return image, block


def _copy(spec: SourceSpec, image: ImageRef, workspace: Workspace, pool: Pool) -> None:
    group = locate(image.store)
    store = create_copy(image, workspace)
    job = CopyJob(
        f"ingest {workspace.name}",
        replace(spec, path=str(locate(spec.path).absolute())),
        ArrayRef(group.absolute() / image.array, image.axes),
    )
    blocks = range(store.array.grid.count)
    resume(pool, job, store, blocks, "ingest", workspace.to_recompute(COPY))
    delete_partial_files(group)


def _survey(image: ImageRef, grid: BlockGrid, workspace: Workspace, pool: Pool) -> IngestManifest:
    """Read the image: once for 8 and 16 bit integers, else once more to know their range first."""
    channels = len(image.channel_names)
    signature = None if image.copied else file_signature(image)

    def read(bins: tuple[Bins, ...] | None) -> Survey:
        survey = Survey(grid.count, channels)
        job = SurveyJob(f"survey {workspace.name}", absolute(image), grid, bins)
        pool.run(job, range(grid.count), survey.add)
        return survey

    of_dtype = Bins.for_dtype(np.dtype(image.dtype))
    if of_dtype is None:
        extremes = read(None)
        bins = tuple(map(Bins.for_span, extremes.low, extremes.high))
    else:
        bins = (of_dtype,) * channels
    survey = read(bins)
    stream = io.BytesIO()  # numpy itself does not say that a disk is full
    np.save(stream, survey.counts)
    histograms = stream.getvalue()
    write_whole(workspace.root / HISTOGRAMS, histograms)
    ingested = IngestedImage(
        **vars(image),
        data_range=(min(survey.low), max(survey.high)),
        contrast_limits=_contrast_limits(image, bins, survey.counts),
        digest=fingerprint(survey.digest, image.dtype, image.shape),
        file_signature=signature,
    )
    return IngestManifest(ingested, HISTOGRAMS, digest(histograms).hex(), bins)


def _contrast_limits(
    image: ImageRef, bins: tuple[Bins, ...], counts: NDArray[np.int64]
) -> tuple[tuple[float, float], ...]:
    """Of each channel nearly all values: a few bright pixels must not leave the others black.

    8 bits are what a screen shows: they stay as they are, and so does their colour.
    """
    if image.dtype == "uint8":
        return ((0.0, 255.0),) * len(bins)
    limits = []
    for bins_of_channel, counts_of_channel in zip(bins, counts, strict=True):
        summary = Summary.of(bins_of_channel, counts_of_channel, CONTRAST_PERCENTILES)
        low, high = (summary.percentiles[p] for p in CONTRAST_PERCENTILES)
        limits.append((low, high) if low < high else (summary.minimum, summary.maximum))
    return tuple(limits)
