"""split: decide everything about one image, and write it down as its plan.

Here the image meets the model: channels and dimensions are compared, normalisation is derived from
the statistics of the whole image, and blocks, windows and memory are laid out by `unet.planning`.
It reads manifests only, never pixels, and refuses what cannot work before anything expensive runs.
"""

from __future__ import annotations

import io
import logging

import numpy as np
from numpy.typing import NDArray

from unet.errors import StoreError
from unet.model.folder import ModelSpec, find_model
from unet.model.normalisation import Summary
from unet.planning.image import ImageRef
from unet.planning.options import SplitOptions
from unet.planning.plan import Plan, make_plan
from unet.planning.result_layout import bytes_to_write
from unet.quantities import with_prefix
from unet.stages.manifests import IngestManifest
from unet.stages.probabilities import create_probabilities
from unet.storage.digest import digest
from unet.storage.disk_space import refuse_full_disk
from unet.storage.manifest import read_manifest, write_manifest
from unet.storage.result_record import refuse_result_of_others
from unet.storage.store import refuse_changed
from unet.storage.workspace import Workspace

log = logging.getLogger(__name__)

ODD_SCALE = 1.5


def run(workspace: Workspace, model: str, options: SplitOptions, slabs: int) -> Plan:
    """Plan one image and write the plan. Raises ModelError and PlanError."""
    ingested = read_manifest(workspace.manifest("ingest"), IngestManifest)
    spec = find_model(model)
    _check_fit(workspace.name, ingested.image, spec)
    refuse_changed(ingested.image)
    counts = _read_histograms(workspace, ingested)
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
    refuse_result_of_others(
        workspace.records, workspace.result, lambda record: record.plan == plan.fingerprint
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


def _read_histograms(workspace: Workspace, ingested: IngestManifest) -> NDArray[np.int64]:
    """The counts of each channel, (channels, 65536). Raises StoreError where they are damaged."""
    file = workspace.root / ingested.histograms
    content = file.read_bytes() if file.exists() else b""
    if digest(content).hex() != ingested.histograms_digest:
        raise StoreError(
            f"Expected {file} as it was ingested, but it is missing, damaged or of another image. "
            f"Run again with --forcerun ingest."
        )
    counts: NDArray[np.int64] = np.load(io.BytesIO(content), allow_pickle=False)
    return counts


def describe(plan: Plan) -> str:
    """The plan in one sentence, for the log."""
    return (
        f"{plan.blocks} blocks of {plan.block} in {plan.slabs} slabs, {plan.windows} windows of "
        f"core {plan.core}, {with_prefix(plan.flop, 'FLOP')}; a worker holds "
        f"{with_prefix(plan.worker_bytes, 'B')}, of that on its device "
        f"{with_prefix(plan.device_bytes, 'B')}; the result has at most {plan.result.files} files "
        f"and {with_prefix(plan.result.bytes, 'B')}, and the probabilities "
        f"{with_prefix(plan.probabilities_bytes, 'B')}, before compression"
    )


def scale_warning(actual: float | None, model: ModelSpec) -> str | None:
    """What to tell of an image's pixel size in x, in micrometres; None where it fits the model."""
    expected = model.pixel_size
    if not expected:
        return None
    if not actual:
        return (
            f"the pixel size is unknown, and the model {model.name} was trained on {expected:.4g} "
            f"um: make sure that the objects look as large as there, or set `pixel_size`."
        )
    if 1 / ODD_SCALE < actual / expected < ODD_SCALE:
        return None
    ratio, look = max((actual / expected, "smaller"), (expected / actual, "larger"))
    times = f"{ratio:.2g}" if ratio < 10 else f"{ratio:,.0f}"
    return (
        f"the pixels are of {actual:.4g} um, but the model {model.name} was trained on "
        f"{expected:.4g} um: the objects look {times} times {look} than there. Choose another "
        f"level or another model, or set `pixel_size` if what the file says of it is wrong."
    )


def _check_fit(name: str, image: ImageRef, spec: ModelSpec) -> None:
    spec.refuse_channels(image.channel_names, image.store)
    spec.refuse_plane(image.shape[1:], image.store)
    told = scale_warning(image.pixel_size.get("x"), spec)
    if told:
        log.warning("%s: %s", name, told)
