"""split: decide everything about one image, and write it down as its plan.

Here the image meets the model: channels and dimensions are compared, normalisation is derived from
the statistics of the whole image, and blocks, windows and memory are laid out by `unet.planning`.
It reads manifests only, never pixels, and refuses what cannot work before anything expensive runs.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from unet.errors import SourceError
from unet.model.folder import ModelSpec, find_model
from unet.model.normalisation import Summary
from unet.planning.plan import ImageRef, Plan, SplitOptions, make_plan
from unet.planning.result_layout import Footprint, footprint, to_write
from unet.stages.ingest import IngestManifest
from unet.storage import store
from unet.storage.disk_space import refuse_little_room
from unet.storage.manifest import read_manifest, write_manifest
from unet.storage.workspace import Workspace, probabilities

log = logging.getLogger(__name__)

ODD_SCALE = 1.5


def run(place: Workspace, model: str, request: SplitOptions, slabs: int) -> Plan:
    """Plan one image and write the plan. Raises ModelError and PlanError."""
    ingested = read_manifest(place.manifest("ingest"), IngestManifest)
    spec = find_model(model)
    _check_fit(ingested.image, spec)
    refuse_changed(ingested.image)
    counts = np.load(place.root / ingested.histograms, allow_pickle=False)
    percentiles = spec.normalisation.percentiles
    offset, scale = spec.normalisation.affine(
        [
            Summary.of(bins, channel, percentiles)
            for bins, channel in zip(ingested.bins, counts, strict=True)
        ]
    )
    plan = make_plan(
        image=ingested.image,
        model=spec,
        affine=(tuple(offset), tuple(scale)),
        request=request,
        slabs=slabs,
    )
    plan = with_footprint(plan)
    with place.claimed():
        # Made here, by one job, before slabs open it side by side.
        left = probabilities(plan, place).bytes_left(range(plan.blocks))
        if left:
            what = f"{place.name}: the probabilities and the result"
            refuse_little_room(place.home, left + to_write(plan), what)
        write_manifest(place.manifest("split"), plan)
    log.info("%s: %s", place.name, described(plan))
    return plan


def with_footprint(plan: Plan) -> Plan:
    """The plan, telling what its run will write."""
    result = footprint(plan)
    return replace(
        plan,
        output_files=result.files,
        output_bytes=result.bytes,
        probabilities_bytes=Footprint.of([plan.probabilities()]).bytes,
    )


def described(plan: Plan) -> str:
    """The plan in one sentence, for the log."""
    space = plan.probabilities_bytes / 1e9
    return (
        f"{plan.blocks} blocks of {plan.block} in {plan.slabs} slabs, {plan.windows} windows of "
        f"core {plan.core}, {plan.flop / 1e9:,.0f} GFLOP; a worker holds "
        f"{plan.worker_bytes / 1e9:.2f} GB, of that on its device {plan.device_bytes / 1e9:.2f} GB"
        f"; the result has at most {plan.output_files} files and {plan.output_bytes / 1e9:.2f} GB, "
        f"and the probabilities {space:.2f} GB, before compression"
    )


def read_plan(place: Workspace) -> Plan:
    """The plan that `run` wrote."""
    return read_manifest(place.manifest("split"), Plan)


def refuse_changed(image: ImageRef) -> None:
    """Raise SourceError if an image that is read in place is not as it was when it was ingested."""
    if not image.copied and store.identity(image) != image.identity:
        raise SourceError(
            f"Expected {image.store} as it was when it was ingested, but its files were changed "
            f"since, and blocks of two images must not mix. Run again with --forcerun ingest."
        )


def _check_fit(image: ImageRef, spec: ModelSpec) -> None:
    spec.refuse_channels(image.channel_names, image.store)
    spec.refuse_plane(image.shape[1:], image.store)
    found = image.pixel_size.get("x")
    if spec.pixel_size and not found:
        log.warning(
            "nothing says the image's pixel size, and the model %s was trained on %.3f um: see to "
            "it that its objects look as large, or set `pixel_size`.",
            *(spec.name, spec.pixel_size),
        )
    if spec.pixel_size and found and not 1 / ODD_SCALE < found / spec.pixel_size < ODD_SCALE:
        log.warning(
            "the image has pixels of %.3f um, but the model %s was trained on %.3f um: its objects "
            "look %.1f times as large. Choose another level, or another model.",
            *(found, spec.name, spec.pixel_size, spec.pixel_size / found),
        )
