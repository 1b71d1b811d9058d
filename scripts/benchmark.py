"""How fast the pipeline is, beside other ways to do the same: `python scripts/benchmark.py`.

Two experiments, each in one run on one machine, on the CPU:

network  The network of 2015 with random weights on one image: this pipeline from the file to the
         mask, a plain loop over 572 windows, MONAI's sliding window where MONAI is installed, and
         the network alone on the very windows of the plan, in the environment of a worker. The
         ways take turns, round by round, and ratios are taken within a round, so that a machine
         that slows down slows down all. Where others use the machine too, the time of
         the processors says more than the clock.
data     The pipeline on a large image with the centre crop in the network's place: what moving
         the pixels costs, the start of the workers with it.

torch is imported late, since every worker imports this file, as Python's `spawn` wants it.
"""

import argparse
import json
import logging
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import trial

from unet.execution import pool, progress
from unet.stages.split import read_plan
from unet.storage.workspace import Workspace, finish, probabilities, probabilities_group

BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}

Seconds = dict[str, float]


class Lines(logging.Handler):
    """When progress was told: the first line comes when the workers stand, the last at the end."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.times: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note the time of a line."""
        self.times.append(record.created)


def timed(do: Callable[[], Any]) -> float:
    """Seconds of a call."""
    begin = time.perf_counter()
    do()
    return time.perf_counter() - begin


def pipeline(place: Workspace, given: argparse.Namespace, precision: str) -> Seconds:
    """The stages, from the file to the mask."""
    folder, lines = place.root.parent, Lines()
    found = {
        "ingest": timed(lambda: trial.run_ingest(place, folder / "image.tif", given.cores)),
        "split": timed(lambda: trial.run_split(place, folder / "model", given.memory, precision)),
    }
    progress.log.addHandler(lines)
    used = processor_seconds()
    found["predict"] = timed(lambda: trial.run_predict(place, given.cores))
    used = processor_seconds() - used
    progress.log.removeHandler(lines)
    found["stitch"] = timed(lambda: trial.run_stitch(place, given.cores))
    found["pipeline"] = sum(found.values())
    found["predict, workers started"] = lines.times[-1] - lines.times[0]
    found["predict, of processors"] = used
    return found


def one_round(folder: Path, given: argparse.Namespace, precisions: list[str]) -> Seconds:
    """Every way once."""
    import torch
    from ways import seconds_of

    found = {}
    for precision in precisions:
        place = Workspace(Path(tempfile.mkdtemp(dir=folder)))
        found |= {f"{name} {precision}": s for name, s in pipeline(place, given, precision).items()}
        seconds, used = alone(place, given.cores)
        found[f"network alone {precision}"] = seconds
        found[f"network alone, of processors {precision}"] = used
    if given.others:
        torch.set_num_threads(given.cores)  # the stage's reference window takes one
        image = trial.made_image(given.size)
        for way in ("plain loop", "MONAI"):
            if way != "MONAI" or find_spec("monai"):
                found[way] = seconds_of(way, folder / "model", image)
    return found


def alone(place: Workspace, cores: int) -> tuple[float, float]:
    """The network alone, in a process whose environment is that of a worker."""
    from ways import network_alone

    before = dict(os.environ)
    os.environ.update({name: str(value) for name, value in pool.KEEP_FREED_MEMORY.items()})
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            return process.submit(network_alone, read_plan(place), cores).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def ratios(found: Seconds, precisions: list[str]) -> dict[str, float]:
    """How many times the pipeline is as fast as the others, within one round."""
    compared = {}
    for precision in precisions:
        for other in ("plain loop", "MONAI"):
            if other in found:
                compared[f"{other} / pipeline {precision}"] = (
                    found[other] / found[f"pipeline {precision}"]
                )
        for part in ("predict, workers started", "predict", "pipeline"):
            name = f"{part} {precision}"
            compared[f"network alone / {name}"] = found[f"network alone {precision}"] / found[name]
        compared[f"network alone / predict, of processors {precision}"] = (
            found[f"network alone, of processors {precision}"]
            / found[f"predict, of processors {precision}"]
        )
    return compared


def network_experiment(given: argparse.Namespace) -> dict[str, Any]:
    """All rounds, and their medians."""
    precisions = [p for p in given.precisions if p != "bfloat16" or has_bfloat16()]
    rounds = []
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        trial.write_image(Path(name, "image.tif"), given.size)
        trial.write_model(Path(name, "model"), given.width)
        for number in range(given.rounds):
            rounds.append(one_round(Path(name), given, precisions))
            say(
                f"round {number + 1}: " + ", ".join(f"{k} {s:.1f} s" for k, s in rounds[-1].items())
            )
    every = [ratios(found, precisions) for found in rounds]
    missing = [] if find_spec("monai") else ["MONAI not measured: it is not installed"]
    if precisions != given.precisions:
        missing.append("bfloat16 not measured: this processor has no bfloat16")
    return {
        "image": [given.size, given.size],
        "rounds": rounds,
        "figures": {name: figure(s, given.size) for name, s in medians(rounds).items()},
        "ratios": medians(every),
        "not measured": missing,
    }


def data_experiment(given: argparse.Namespace) -> dict[str, Any]:
    """The stages with the crop for a network: a large image, and what it takes beyond a small one.

    The difference leaves out the start of the workers, which does not grow with the image.
    """
    small, large = given.data_size // 2, given.data_size
    shown, further = {}, (large**2 - small**2) / 1e6
    seconds = {side: data_seconds(given, side) for side in (small, large)}
    for stage, whole in seconds[large].items():
        shown[stage] = figure(whole, large)
        shown[stage]["Mpx/s a core"] = shown[stage]["Mpx/s"] / given.cores
        more = whole - seconds[small][stage]
        shown[stage]["Mpx/s a core, workers started"] = further / more / given.cores
    return {
        "image": [large, large],
        "source": f"tiled TIFF, {given.compression or 'uncompressed'}",
        "figures": shown,
    }


def data_seconds(given: argparse.Namespace, side: int) -> Seconds:
    """The stages that move pixels, on one image."""
    from ways import CropJob  # and so torch, before the clock runs

    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        place, image = Workspace(Path(name, "image")), Path(name, "image.tif")
        trial.write_image(image, side, given.compression)
        trial.write_model(Path(name, "model"), width=1)
        found = {"ingest": timed(lambda: trial.run_ingest(place, image, given.cores))}
        trial.run_split(place, Path(name, "model"), given.memory)
        found["predict"] = timed(lambda: predict_crop(CropJob, place, given.cores))
        found["stitch"] = timed(lambda: trial.run_stitch(place, given.cores))
    return found


def processor_seconds() -> float:
    """Of this process and those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def predict_crop(job_of: Callable[..., Any], place: Workspace, cores: int) -> None:
    """What `unet.stages.predict.run` does, with another job."""
    from unet.stages.predict import processes

    plan = read_plan(place)
    machines = pool.Machines.for_network(None, (), cores)
    machines = machines.at_least(processes(plan))
    group = str(probabilities_group(plan, place))
    job = job_of("predict crop", plan, group, "cpu", max(1, cores // machines.workers))
    target, blocks = probabilities(plan, place), range(plan.blocks)
    with pool.connect(machines) as client:
        finish(client, job, target, blocks, "crop", machines)


def medians(rounds: list[Seconds]) -> Seconds:
    """Name by name."""
    return {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}


def figure(seconds: float, side: int) -> dict[str, float]:
    """Seconds, and the rate they mean on a square image."""
    return {"seconds": seconds, "Mpx/s": side**2 / 1e6 / seconds}


def processor() -> dict[str, str]:
    """What Linux says of the first processor; nothing elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16; without that it only emulates it, slowly."""
    said = processor()
    return bool(BFLOAT16_FLAGS & set(f"{said.get('flags')} {said.get('Features')}".split()))


def machine(given: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    packages = ("torch", "numpy", "zarr", "dask", "distributed", "numcodecs")
    return {
        "processor": processor().get("model name") or platform.processor() or platform.machine(),
        "system": platform.platform(),
        "cores": given.cores,
        "load before": os.getloadavg()[0],
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
    }


def say(line: str) -> None:
    """A line on the terminal, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def show(title: str, result: dict[str, Any]) -> None:
    """A table on the terminal."""
    say(f"\n{title}, {result['image']} pixels" + f", {result.get('source', '')}".rstrip(", "))
    for name, found in result["figures"].items():
        say(f"  {name:36}" + "".join(f"{value:10.2f} {unit}" for unit, value in found.items()))
    for name, ratio in result.get("ratios", {}).items():
        say(f"  {name:60}{ratio:8.3f}")
    for line in result.get("not measured", []):
        say(f"  {line}")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("network", "data"))
    parser.add_argument("--size", type=int, default=1536, help="side of the network's image")
    parser.add_argument("--width", type=int, default=64, help="channels of the first level")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument(
        "--no-others", dest="others", action="store_false", help="leave the loop and MONAI out"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--data-size", type=int, default=16384, help="side of the data's image")
    parser.add_argument("--compression", default="zlib", help="of the data's TIFF; none for none")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--memory", type=float, default=8.0, help="GB a worker, as in the config")
    parser.add_argument("--folder", type=Path, help="where images go; default a temporary folder")
    parser.add_argument("--json", type=Path, help="file for all figures")
    given = parser.parse_args()
    given.compression = None if given.compression == "none" else given.compression
    return given


def main(given: argparse.Namespace) -> None:
    """Measure and tell."""
    progress.log.setLevel(logging.INFO)
    result = {"machine": machine(given)}
    say(json.dumps(result["machine"]))
    for name, experiment in (("data", data_experiment), ("network", network_experiment)):
        if given.only in (None, name):
            result[name] = experiment(given)
            show(name, result[name])
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(options())
