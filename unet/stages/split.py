"""split: decide everything about one image, and write it down as its plan.

Here the image meets the model: channels and dimensions are compared, normalisation is derived from
the statistics of the whole image, and blocks, windows and memory are laid out by `unet.planning`.
It reads manifests only, never pixels, and refuses what cannot work before anything expensive runs.
"""

from __future__ import annotations

import logging

import numpy as np

from unet.model.folder import ModelSpec, find_model
from unet.model.normalisation import Summary
from unet.planning.image import ImageRef
from unet.planning.options import SplitOptions
from unet.planning.plan import Plan, make_plan
from unet.planning.result_layout import bytes_to_write
from unet.stages.manifests import IngestManifest
from unet.stages.probabilities import create_probabilities
from unet.storage.disk_space import refuse_full_disk
from unet.storage.manifest import read_manifest, write_manifest
from unet.storage.store import refuse_changed
from unet.storage.workspace import Workspace

log = logging.getLogger(__name__)

ODD_SCALE = 1.5


def run(workspace: Workspace, model: str, options: SplitOptions, slabs: int) -> Plan:
    """Plan one image and write the plan. Raises ModelError and PlanError."""
    ingested = read_manifest(workspace.manifest("ingest"), IngestManifest)
    spec = find_model(model)
    _check_fit(ingested.image, spec)
    refuse_changed(ingested.image)
    counts = np.load(workspace.root / ingested.histograms, allow_pickle=False)
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
        options=options,
        slabs=slabs,
    )
    with workspace.lock():
        # Made here, by one job, before slabs open it side by side.
        left = create_probabilities(plan, workspace).bytes_left()
        if left:
            what = f"{workspace.name}: the probabilities and the result"
            refuse_full_disk(
                workspace.home, left + bytes_to_write(plan.image, plan.mask_layout), what
            )
        write_manifest(workspace.manifest("split"), plan)
    log.info("%s: %s", workspace.name, describe(plan))
    return plan


def describe(plan: Plan) -> str:
    """The plan in one sentence, for the log."""
    return (
        f"{plan.blocks} blocks of {plan.block} in {plan.slabs} slabs, {plan.windows} windows of "
        f"core {plan.core}, {plan.flop / 1e9:,.0f} GFLOP; a worker holds "
        f"{plan.worker_bytes / 1e9:.2f} GB, of that on its device {plan.device_bytes / 1e9:.2f} GB"
        f"; the result has at most {plan.result.files} files and {plan.result.bytes / 1e9:.2f} GB, "
        f"and the probabilities {plan.probabilities_bytes / 1e9:.2f} GB, before compression"
    )


def _check_fit(image: ImageRef, spec: ModelSpec) -> None:
    spec.refuse_channels(image.channel_names, image.store)
    spec.refuse_plane(image.shape[1:], image.store)
    expected, actual = spec.pixel_size, image.pixel_size.get("x")
    if expected and not actual:
        log.warning(
            "the image's pixel size is unknown, and the model %s was trained on %.3f um: make sure "
            "that its objects look as large, or set `pixel_size`.",
            *(spec.name, expected),
        )
    if expected and actual and not 1 / ODD_SCALE < actual / expected < ODD_SCALE:
        log.warning(
            "the image has pixels of %.3f um, but the model %s was trained on %.3f um: its objects "
            "look %.1f times as large. Choose another level, or another model.",
            *(actual, spec.name, expected, expected / actual),
        )
