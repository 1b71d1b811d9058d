"""How long the network of 2015 takes from a file to a mask: by this pipeline, and by others.

The ways take turns, round by round, and ratios are taken within a round: a machine that slows down
then slows down all of them. Where others use the machine too, the time of the processors says more
than the clock.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scripts.benchmark import stages
from scripts.benchmark.alternatives import (
    LOOP,
    MONAI,
    seconds_of_network_alone,
    seconds_of_others,
)
from scripts.benchmark.figures import (
    Seconds,
    medians,
    processor_seconds,
    say,
    seconds_of,
    with_rate,
)
from unet.execution import progress
from unet.stages.manifests import read_plan
from unet.storage.workspace import Workspace


class LineTimes(logging.Handler):
    """When progress was logged: the first line comes when the workers stand, the last at the end.

    times  seconds since the epoch
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.times: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note the time of a line."""
        self.times.append(record.created)


def measure(options: argparse.Namespace, precisions: list[str]) -> dict[str, Any]:
    """All rounds, their medians, and the ratios within them."""
    rounds: list[Seconds] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        stages.write_image(folder / "image.tif", options.size)
        stages.write_model(folder / "model", options.width)
        for number in range(1, options.rounds + 1):
            rounds.append(_run_round(folder, options, precisions))
            seconds = ", ".join(f"{way} {s:.1f} s" for way, s in rounds[-1].items())
            say(f"round {number}: {seconds}")
    return {
        "image": [options.size, options.size],
        "rounds": rounds,
        "figures": {name: with_rate(s, options.size) for name, s in medians(rounds).items()},
        "ratios": medians([ratios(seconds, precisions) for seconds in rounds]),
        "not measured": _not_measured(options, precisions),
    }


def ratios(seconds: Seconds, precisions: list[str]) -> dict[str, float]:
    """How many times as fast the pipeline is as the others, within one round."""
    compared = {}
    for precision in precisions:
        for other in (LOOP, MONAI):
            if other in seconds:
                compared[f"{other} / pipeline {precision}"] = (
                    seconds[other] / seconds[f"pipeline {precision}"]
                )
        for part in ("predict, workers started", "predict", "pipeline"):
            name = f"{part} {precision}"
            compared[f"network alone / {name}"] = (
                seconds[f"network alone {precision}"] / seconds[name]
            )
        compared[f"network alone / predict, of processors {precision}"] = (
            seconds[f"network alone, of processors {precision}"]
            / seconds[f"predict, of processors {precision}"]
        )
    return compared


def _run_round(folder: Path, options: argparse.Namespace, precisions: list[str]) -> Seconds:
    """Every way once."""
    seconds: Seconds = {}
    for precision in precisions:
        workspace = Workspace(Path(tempfile.mkdtemp(dir=folder)))
        ways = _run_pipeline(workspace, options, precision)
        ways["network alone"], ways["network alone, of processors"] = seconds_of_network_alone(
            read_plan(workspace), options.cores
        )
        seconds |= {f"{way} {precision}": s for way, s in ways.items()}
    if options.others:
        image = stages.make_image(options.size)
        seconds |= seconds_of_others(folder / "model", image, options.cores)
    return seconds


def _run_pipeline(workspace: Workspace, options: argparse.Namespace, precision: str) -> Seconds:
    """The stages, from the file to the mask."""
    folder, cores = workspace.root.parent, options.cores
    ingest = seconds_of(lambda: stages.run_ingest(workspace, folder / "image.tif", cores))
    split = seconds_of(
        lambda: stages.run_split(workspace, folder / "model", options.memory, precision)
    )
    lines, processors = LineTimes(), processor_seconds()
    progress.log.addHandler(lines)
    try:
        predict = seconds_of(lambda: stages.run_predict(workspace, cores))
    finally:
        progress.log.removeHandler(lines)
    processors = processor_seconds() - processors
    stitch = seconds_of(lambda: stages.run_stitch(workspace, cores))
    return {
        "ingest": ingest,
        "split": split,
        "predict": predict,
        "stitch": stitch,
        "pipeline": ingest + split + predict + stitch,
        "predict, workers started": lines.times[-1] - lines.times[0],
        "predict, of processors": processors,
    }


def _not_measured(options: argparse.Namespace, precisions: list[str]) -> list[str]:
    """What was left out though it was asked for, and why."""
    lines = []
    if options.others and not find_spec("monai"):
        lines.append("MONAI not measured: it is not installed (pip install monai)")
    if set(precisions) != set(options.precisions):
        lines.append("bfloat16 not measured: this processor has no bfloat16")
    return lines
