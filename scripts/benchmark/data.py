"""How long moving the pixels takes: the stages with the centre crop in the network's place.

Each stage runs on an image and on one of half its side. The difference leaves out the start of the
workers, which does not grow with the image.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from scripts.benchmark import stages
from scripts.benchmark.alternatives import CropJob
from scripts.benchmark.figures import Seconds, seconds_of, with_rate
from unet.execution.machines import Machines
from unet.execution.pool import connect
from unet.execution.resume import resume
from unet.stages.manifests import read_plan
from unet.stages.predict import light_processes
from unet.stages.probabilities import create_probabilities, probabilities_array
from unet.storage.workspace import Workspace


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each stage on the large image, and megapixels a second."""
    small, large = options.data_size // 2, options.data_size
    seconds = {side: _seconds_of_stages(options, side) for side in (small, large)}
    figures = {}
    for stage, whole in seconds[large].items():
        figures[stage] = with_rate(whole, large)
        figures[stage]["Mpx/s a core"] = figures[stage]["Mpx/s"] / options.cores
        more = whole - seconds[small][stage]
        if more > 0:  # of tiny images the start of the workers is all, now longer and now shorter
            rate = (large**2 - small**2) / 1e6 / more / options.cores
            figures[stage]["Mpx/s a core, workers started"] = rate
    return {
        "image": [large, large],
        "source": f"tiled TIFF, {options.compression or 'uncompressed'}",
        "figures": figures,
    }


def _seconds_of_stages(options: argparse.Namespace, side: int) -> Seconds:
    """The stages that move pixels, on one image."""
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        workspace, image = Workspace(Path(name, "image")), Path(name, "image.tif")
        stages.write_image(image, side, options.compression)
        stages.write_model(Path(name, "model"), width=1)
        ingest = seconds_of(lambda: stages.run_ingest(workspace, image, options.cores))
        stages.run_split(workspace, Path(name, "model"), options.memory)
        return {
            "ingest": ingest,
            "predict": seconds_of(lambda: _predict_crop(workspace, options.cores)),
            "stitch": seconds_of(lambda: stages.run_stitch(workspace, options.cores)),
        }


def _predict_crop(workspace: Workspace, cores: int) -> None:
    """What `unet.stages.predict.run` does, with another job and no test window."""
    plan = read_plan(workspace)
    machines = Machines.for_network(None, (), cores)
    machines = machines.at_least(light_processes(plan)).fitting(plan.blocks, plan.worker_bytes)
    threads = max(1, cores // machines.workers)
    target = probabilities_array(plan, workspace)
    job = CropJob("predict crop", plan, target, "cpu", threads)
    store = create_probabilities(plan, workspace)
    with connect(machines) as pool:
        resume(pool, job, store, range(plan.blocks), "crop")
