"""evaluate: the masks of finished runs against labels, as a table and a page of pictures.

Pixels are counted box by box, so that no plane has to fit in memory. Instances and membranes need
whole planes, which have to; instances of a 3D network need whole volumes.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unet.errors import SourceError
from unet.evaluation import picture
from unet.evaluation.labels import classes_of
from unet.evaluation.metrics import Tally
from unet.model.folder import find_model
from unet.planning.axes import Sizes
from unet.planning.geometry import BlockGrid, Box, grow_block
from unet.sources import open_source
from unet.sources.base import Source, SourceSpec
from unet.stages.manifests import StitchManifest, read_plan
from unet.storage.manifest import read_manifest, write_whole
from unet.storage.workspace import Workspace

log = logging.getLogger(__name__)

DIGITS = 6
DRAWN = 3  # planes of an image
CANDIDATES = 4  # parts of a plane that may be drawn, on each of y and x
COUNTED = 1 << 22  # pixels that are counted at once, unless the labels decode more at once


@dataclass(frozen=True)
class Evaluation:
    """What a mask is compared with.

    workspace  of the finished run
    image      its image, for the pictures
    label      instance labels, or class masks where `values` says the label of each class
    annotated  a mask of where the labels are complete; None for everywhere
    measures   "pixels", "instances", "membranes"
    """

    workspace: Workspace
    image: SourceSpec
    label: SourceSpec
    annotated: SourceSpec | None
    values: tuple[int, ...] | None
    measures: tuple[str, ...]


def run(asked: list[Evaluation], table: Path, page: Path) -> None:
    """Compare every mask, and write the table (image, measure, value) and the page.

    Raises SourceError where labels do not fit their mask.
    """
    text, rows = io.StringIO(), []
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "measure", "value"])
    for evaluation in asked:
        figures, drawn = _evaluated(evaluation)
        name = evaluation.workspace.name
        writer.writerows([name, of, round(value, DIGITS)] for of, value in figures.items())
        rows += drawn
        log.info("%s: %s", name, ", ".join(f"{of} {v:.4f}" for of, v in figures.items()))
    write_whole(table, text.getvalue().encode())
    write_whole(page, picture.page(rows))


def _evaluated(asked: Evaluation) -> tuple[dict[str, float], list[picture.Picture]]:
    """The figures of one mask, and its rows of the page."""
    plan = read_plan(asked.workspace)
    volumes = find_model(plan.model).architecture.dims == 3
    mask = read_manifest(asked.workspace.manifest("stitch"), StitchManifest).mask
    tally = Tally(asked.measures, len(plan.classes), volumes)
    with ExitStack() as opened:

        def source(spec: SourceSpec) -> Source:
            return opened.enter_context(closing(open_source(spec)))

        found, label, image = source(SourceSpec(mask)), source(asked.label), source(asked.image)
        annotated = None if asked.annotated is None else source(asked.annotated)
        _refuse_other_size(label, asked.label, found, mask)
        if annotated is not None and asked.annotated is not None:
            _refuse_other_size(annotated, asked.annotated, found, mask)
        for box in _boxes(label, _needed(asked.measures, volumes, label)):
            labels, classes = label.read(box)[0, 0], found.read(box)[0, 0].astype(np.uint8)
            complete = np.ones(labels.shape, np.bool_)
            if annotated is not None:
                complete = annotated.read(box)[0, 0] != 0
            objects = labels if asked.values is None else None
            tally.add(
                classes, classes_of(labels, asked.values, asked.label.path), objects, complete
            )
        rows = [_row(image, found, label, plane, asked) for plane in _drawn(label)]
    return tally.scores(), rows


def _needed(measures: tuple[str, ...], volumes: bool, label: Source) -> Sizes:
    """The (z, y, x) that have to be read at once."""
    zyx = label.shape[2:]
    if "instances" in measures and volumes:
        return zyx
    if "instances" in measures or "membranes" in measures:
        return (1, *zyx[1:])
    return grow_block(label.chunks[2:], zyx, 2, COUNTED)


def _boxes(source: Source, piece: Sizes) -> Iterator[Box]:
    """The image in pieces of (z, y, x), time after time."""
    times, _, *zyx = source.shape
    grid = BlockGrid(tuple(zyx), piece)
    for t in range(times):
        for index in range(grid.count):
            box = grid.box(index)
            yield Box((t, *box.start), (t + 1, *box.stop))


def _drawn(source: Source) -> Iterator[tuple[int, int]]:
    """The (t, z) of some planes, evenly spread."""
    times, _, depth, *_ = source.shape
    planes = times * depth
    for index in np.linspace(0, planes - 1, min(DRAWN, planes)).round().astype(int):
        yield divmod(int(index), depth)


def _row(
    image: Source, found: Source, label: Source, plane: tuple[int, int], asked: Evaluation
) -> picture.Picture:
    """A part of one plane: image, mask, errors.

    Of candidates, spread evenly over the plane, it is the one that holds most labels, and the
    middle where none does: the corner of a slide is glass.
    """

    def wanted(box: Box) -> NDArray[np.bool_]:
        return classes_of(label.read(box)[0, 0, 0], asked.values, asked.label.path) > 0

    box = max(_candidates(plane, label.shape[3:]), key=lambda box: wanted(box).sum())
    return picture.compared(image.read(box)[0, :, 0], found.read(box)[0, 0, 0] > 0, wanted(box))


def _candidates(plane: tuple[int, int], yx: Sizes) -> Iterator[Box]:
    """The parts of a plane (t, z) that may be drawn, those in the middle first."""
    sides = [min(size, picture.LARGEST_SIDE) for size in yx]
    ends = [size - side for size, side in zip(yx, sides, strict=True)]
    spread = [np.linspace(0, end, CANDIDATES).astype(int).tolist() for end in ends]
    middle = [sorted(set(starts), key=lambda a: abs(2 * a - max(starts))) for starts in spread]
    for y, x in product(*middle):
        yield Box((*plane, y, x), (plane[0] + 1, plane[1] + 1, y + sides[0], x + sides[1]))


def _refuse_other_size(source: Source, spec: SourceSpec, mask: Source, path: str) -> None:
    if source.shape != mask.shape:
        raise SourceError(
            f"Expected {spec.path} to have one channel and the size of the mask {path}, (t, c, z, "
            f"y, x) = {mask.shape}, got {source.shape}. Check that they belong together, and axes."
        )
