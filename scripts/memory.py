"""Whether peak memory grows with the image: `python scripts/memory.py`.

Ingest, split, predict and stitch run on a small and on a large image, each stage in a process of
its own, as the workflow runs them. The figure is the resident memory of a stage's whole tree of
processes, sampled; memory that processes share is counted once for each, on both sides alike. Ends
with status 1 where the large image needs more than 1.15 times the memory of the small one.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from trial import run_ingest, run_predict, run_split, run_stitch, write_image, write_model

from unet.storage.workspace import Workspace

STAGES = ("ingest", "split", "predict", "stitch")
BAR = 1.15
SECONDS_BETWEEN_SAMPLES = 0.05
MEGABYTE = 1e6


def tree_bytes(process: psutil.Process) -> int:
    """Resident bytes of a process and all that it started."""
    total = 0
    for member in (process, *process.children(recursive=True)):
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def peak_bytes(command: list[str]) -> tuple[int, float]:
    """Run a command; the most its tree of processes held at once, and its seconds."""
    begin = time.monotonic()
    with subprocess.Popen(command) as running:  # noqa: S603 - this script itself
        process = psutil.Process(running.pid)
        peak = 0
        while running.poll() is None:
            try:
                peak = max(peak, tree_bytes(process))
            except psutil.NoSuchProcess:
                break
            time.sleep(SECONDS_BETWEEN_SAMPLES)
    if running.returncode:
        raise SystemExit(f"Expected the stage to end well, got status {running.returncode}.")
    return peak, time.monotonic() - begin


def stage(name: str, folder: Path, cores: int, memory: float) -> None:
    """Run one stage in this process."""
    place = Workspace(folder / "results")
    if name == "ingest":
        run_ingest(place, folder / "image.tif", cores)
    elif name == "split":
        run_split(place, folder.parent / "model", memory)
    elif name == "predict":
        run_predict(place, cores)
    else:
        run_stitch(place, cores)


def measured(side: int, folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """Peak megabytes of each stage on a square image of `side` pixels."""
    folder.mkdir()
    write_image(folder / "image.tif", side)
    found = {}
    for name in STAGES:
        options = ["--stage", name, "--folder", str(folder)]
        options += ["--cores", str(given.cores), "--memory", str(given.memory)]
        peak, seconds = peak_bytes([sys.executable, __file__, *options])
        found[name] = peak / MEGABYTE
        sys.stdout.write(f"{side:6} px  {name:8} {found[name]:8.0f} MB {seconds:7.1f} s\n")
        sys.stdout.flush()
    return found


def compare(given: argparse.Namespace) -> float:
    """Measure both images; the ratio of their peaks over all stages."""
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        write_model(folder / "model", given.width)
        small = measured(given.small, folder / "small", given)
        large = measured(given.large, folder / "large", given)
    for stage_name in STAGES:
        ratio = large[stage_name] / small[stage_name]
        sys.stdout.write(f"{stage_name:8} {ratio:.3f}\n")
    ratio = max(large.values()) / max(small.values())
    pixels = (given.large / given.small) ** 2
    sys.stdout.write(
        f"peak     {ratio:.3f}  ({max(small.values()):.0f} MB and {max(large.values()):.0f} MB, "
        f"for {pixels:.0f} times the pixels; at most {BAR})\n"
    )
    return ratio


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=4096, help="side of the small image")
    parser.add_argument("--large", type=int, default=16384, help="side of the large image")
    parser.add_argument("--width", type=int, default=1, help="channels of the first level")
    parser.add_argument("--cores", type=int, default=psutil.cpu_count())
    parser.add_argument("--memory", type=float, default=8.0, help="GB a worker, as in the config")
    parser.add_argument("--folder", type=Path, help="where the images go; default a temporary one")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        stage(arguments.stage, arguments.folder, arguments.cores, arguments.memory)
    elif compare(arguments) > BAR:
        sys.exit(1)
