"""evaluate: the masks of finished runs against labels, as a table and a page of pictures.

Planes are read one by one, so that a plane has to fit in memory, but not a stack; instances of a 3D
network are compared as whole volumes, which have to.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unet import picture
from unet.errors import SourceError
from unet.geometry import Box
from unet.manifest import read_manifest, write_whole
from unet.metrics import Tally
from unet.model_folder import find_model
from unet.sources import open_source
from unet.sources.base import Source, SourceSpec
from unet.stages.split import read_plan
from unet.stages.stitch import Stitched
from unet.workspace import Workspace

log = logging.getLogger(__name__)

DIGITS = 6
DRAWN = 3  # planes of an image


@dataclass(frozen=True)
class Evaluation:
    """What a mask is compared with.

    place      of the finished run
    image      its image, for the pictures
    label      instance labels, or class masks where `values` says the label of each class
    annotated  a mask of where the labels are complete; None for everywhere
    measures   "pixels", "instances", "membranes"
    """

    place: Workspace
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
        name = evaluation.place.name
        writer.writerows([name, of, round(value, DIGITS)] for of, value in figures.items())
        rows += drawn
        log.info("%s: %s", name, ", ".join(f"{of} {v:.4f}" for of, v in figures.items()))
    write_whole(table, text.getvalue().encode())
    write_whole(page, picture.page(rows))


def _evaluated(asked: Evaluation) -> tuple[dict[str, float], list[picture.Picture]]:
    """The figures of one mask, and its rows of the page."""
    plan = read_plan(asked.place)
    volumes = find_model(plan.model).architecture.dims == 3
    mask = read_manifest(asked.place.manifest("stitch"), Stitched).mask
    tally = Tally(asked.measures, len(plan.classes), volumes)
    with ExitStack() as opened:

        def source(spec: SourceSpec) -> Source:
            return opened.enter_context(closing(open_source(spec)))

        found, label, image = source(SourceSpec(mask)), source(asked.label), source(asked.image)
        annotated = None if asked.annotated is None else source(asked.annotated)
        _refuse_other_size(label, asked.label, found, mask)
        if annotated is not None and asked.annotated is not None:
            _refuse_other_size(annotated, asked.annotated, found, mask)
        for box in _boxes(found, volumes and "instances" in asked.measures):
            labels, classes = label.read(box)[0, 0], found.read(box)[0, 0].astype(np.uint8)
            complete = np.ones(labels.shape, np.bool_)
            if annotated is not None:
                complete = annotated.read(box)[0, 0] != 0
            objects = labels if asked.values is None else None
            tally.add(classes, _classes(labels, asked), objects, complete)
        planes = list(_boxes(found, whole=False))
        chosen = np.linspace(0, len(planes) - 1, min(DRAWN, len(planes))).round().astype(int)
        rows = [_row(image, found, label, planes[index], asked) for index in chosen]
    return tally.figures(), rows


def _row(
    image: Source, found: Source, label: Source, plane: Box, asked: Evaluation
) -> picture.Picture:
    """One plane: image, mask, errors."""
    classes, wanted = found.read(plane)[0, 0, 0], _classes(label.read(plane)[0, 0, 0], asked)
    return picture.compared(image.read(plane)[0, :, 0], classes > 0, wanted > 0)


def _classes(labels: NDArray[np.generic], asked: Evaluation) -> NDArray[np.uint8]:
    """The classes that labels stand for: instances are class 1."""
    if asked.values is None:
        return np.asarray(labels != 0).astype(np.uint8)
    classes = np.zeros(labels.shape, np.uint8)
    for number, value in enumerate(asked.values):
        classes[labels == value] = number
    return classes


def _boxes(mask: Source, whole: bool) -> Iterator[Box]:
    """Plane after plane, or volume after volume."""
    times, _, depth, *plane = mask.shape
    for t in range(times):
        for z in range(0, depth, depth if whole else 1):
            yield Box((t, z, 0, 0), (t + 1, z + (depth if whole else 1), *plane))


def _refuse_other_size(source: Source, spec: SourceSpec, mask: Source, path: str) -> None:
    if source.shape != mask.shape:
        raise SourceError(
            f"Expected {spec.path} to have one channel and the size of the mask {path}, (t, c, z, "
            f"y, x) = {mask.shape}, got {source.shape}. Check that they belong together, and axes."
        )
