"""evaluate: the masks of finished runs against labels, as a table and a page of pictures.

Pixels are counted box by box, so that no plane has to fit in memory. For instances and membranes a
whole plane has to fit, and for the instances of a 3D network the whole volume.
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
from unet.evaluation.labels import LabelSurvey, labels_to_classes
from unet.evaluation.metrics import ScoreCounter
from unet.model.folder import find_model
from unet.planning.axes import Sizes
from unet.planning.geometry import BlockGrid, Box, grow_block
from unet.planning.result_layout import MASK
from unet.sources import open_source
from unet.sources.base import Source, SourceSpec
from unet.stages.manifests import StitchManifest, read_plan
from unet.stages.result import Result
from unet.storage.location import locate
from unet.storage.manifest import read_manifest
from unet.storage.ownership import write_whole
from unet.storage.workspace import Workspace

log = logging.getLogger(__name__)

DIGITS = 6
PLANES_DRAWN = 3  # at most, per image
CANDIDATES = 4  # parts of a plane to choose from, on each of y and x
BOX_PIXELS = 1 << 22  # counted at once, unless one piece of the labels is larger


@dataclass(frozen=True)
class Evaluation:
    """What a mask is compared with.

    workspace  of the finished run
    image      that was segmented, for the pictures
    label      instance labels, or class masks if `values` has the label value of each class
    annotated  a mask of where the labels are complete; None for everywhere
    measures   "pixels", "instances", "membranes"
    """

    workspace: Workspace
    image: SourceSpec
    label: SourceSpec
    annotated: SourceSpec | None
    values: tuple[int, ...] | None
    measures: tuple[str, ...]


def run(evaluations: list[Evaluation], table: Path, page: Path) -> None:
    """Compare every mask, and write the table (image, measure, value) and the page.

    Raises SourceError where labels do not fit their mask.
    """
    text, rows = io.StringIO(), []
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "measure", "value"])
    for evaluation in evaluations:
        scores, pictures = _evaluate(evaluation)
        name = evaluation.workspace.name
        writer.writerows([name, score, round(value, DIGITS)] for score, value in scores.items())
        rows += pictures
        log.info("%s: %s", name, ", ".join(f"{s} {value:.4f}" for s, value in scores.items()))
    write_whole(table, text.getvalue().encode())
    write_whole(page, picture.encode_page(rows))


def _evaluate(evaluation: Evaluation) -> tuple[dict[str, float], list[picture.Picture]]:
    """The scores of one mask, and its rows of the page."""
    plan = read_plan(evaluation.workspace)
    volumes = find_model(plan.model).architecture.dims == 3
    stitched = read_manifest(evaluation.workspace.manifest("stitch"), StitchManifest)
    mask_path = stitched.mask
    result = Result(evaluation.workspace, plan, stitched.fingerprint, locate(stitched.result))
    result.refuse_another()
    result.open(MASK, 0).refuse_holes("Run again with --forcerun stitch, which makes only these.")
    counter = ScoreCounter(evaluation.measures, len(plan.classes), volumes)
    of_instances = evaluation.values is None and "instances" in evaluation.measures
    survey = LabelSurvey(evaluation.label.path, of_instances=of_instances)
    with ExitStack() as stack:

        def source(spec: SourceSpec) -> Source:
            return stack.enter_context(closing(open_source(spec)))

        mask, label = source(SourceSpec(mask_path)), source(evaluation.label)
        image = source(evaluation.image)
        annotated = None if evaluation.annotated is None else source(evaluation.annotated)
        _refuse_other_size(label, evaluation.label, mask, mask_path)
        if annotated is not None and evaluation.annotated is not None:
            _refuse_other_size(annotated, evaluation.annotated, mask, mask_path)
        for box in _boxes(label, _box_size(evaluation.measures, volumes, label)):
            labels, prediction = label.read(box)[0, 0], mask.read(box)[0, 0].astype(np.uint8)
            complete = np.ones(labels.shape, np.bool_)
            if annotated is not None:
                complete = annotated.read(box)[0, 0] != 0
            objects = labels if evaluation.values is None else None
            truth = labels_to_classes(labels, evaluation.values, evaluation.label.path)
            survey.add(np.where(complete, labels, 0))
            counter.add(prediction, truth, objects, complete)
        survey.warn()
        rows = [_draw_row(image, mask, label, plane, evaluation) for plane in _planes(label)]
    return counter.scores(), rows


def _box_size(measures: tuple[str, ...], volumes: bool, label: Source) -> Sizes:
    """The (z, y, x) that have to be read at once."""
    zyx = label.shape[2:]
    if "instances" in measures and volumes:
        return zyx
    if "instances" in measures or "membranes" in measures:
        return (1, *zyx[1:])
    return grow_block(label.chunks[2:], zyx, 2, BOX_PIXELS)


def _boxes(source: Source, size: Sizes) -> Iterator[Box]:
    """The image in boxes of `size` (z, y, x), one time point after the other."""
    times, _, *zyx = source.shape
    grid = BlockGrid(tuple(zyx), size)
    for t in range(times):
        for index in range(grid.count):
            box = grid.box(index)
            yield Box((t, *box.start), (t + 1, *box.stop))


def _planes(source: Source) -> Iterator[tuple[int, int]]:
    """The (t, z) of the planes that are drawn, evenly spread."""
    times, _, depth, *_ = source.shape
    planes = times * depth
    for index in np.linspace(0, planes - 1, min(PLANES_DRAWN, planes)).round().astype(int):
        yield divmod(int(index), depth)


def _draw_row(
    image: Source, mask: Source, label: Source, plane: tuple[int, int], evaluation: Evaluation
) -> picture.Picture:
    """A part of one plane: image, mask, errors.

    Candidates are spread evenly over the plane, since the corner of a slide is often empty glass.
    The one with the most labelled pixels is drawn; the middle one, if there are no labels.
    """

    def truth(box: Box) -> NDArray[np.bool_]:
        labels = label.read(box)[0, 0, 0]
        return labels_to_classes(labels, evaluation.values, evaluation.label.path) > 0

    box = max(_candidates(plane, label.shape[3:]), key=lambda box: truth(box).sum())
    pixels, prediction = image.read(box)[0, :, 0], mask.read(box)[0, 0, 0] > 0
    return picture.draw_comparison(pixels, prediction, truth(box))


def _candidates(plane: tuple[int, int], yx: Sizes) -> Iterator[Box]:
    """The parts of a plane (t, z) to choose from, the middle ones first."""
    sides = [min(size, picture.LARGEST_SIDE) for size in yx]
    last_starts = [size - side for size, side in zip(yx, sides, strict=True)]
    starts_by_axis = [np.linspace(0, last, CANDIDATES).astype(int).tolist() for last in last_starts]
    middle_first = [
        sorted(set(starts), key=lambda a: abs(2 * a - max(starts))) for starts in starts_by_axis
    ]
    for y, x in product(*middle_first):
        yield Box((*plane, y, x), (plane[0] + 1, plane[1] + 1, y + sides[0], x + sides[1]))


def _refuse_other_size(source: Source, spec: SourceSpec, mask: Source, path: str) -> None:
    if source.shape != mask.shape:
        raise SourceError(
            f"Expected {spec.path} to have one channel and the size of the mask {path}, (t, c, z, "
            f"y, x) = {mask.shape}, got {source.shape}. Check that they belong together, and "
            f"that the axes are right."
        )
