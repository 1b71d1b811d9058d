"""Whether peak memory grows with the image: `python -m scripts.benchmark.memory`.

Ingest, split, predict and stitch run on a small and on a large image, each stage in a process of
its own, as the workflow runs them. The figure is the resident memory of a stage and of all
processes that it started, added up, at its peak. Memory that processes share is counted once for
each, for both images alike. The last line compares the peaks; the exit status is 1 where that of
the large image is above 1.15 times that of the small one.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from scripts.benchmark.stages import (
    run_ingest,
    run_predict,
    run_split,
    run_stitch,
    write_image,
    write_model,
)
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
            total += int(member.memory_info().rss)
        except psutil.NoSuchProcess:
            continue
    return total


def peak_bytes(command: list[str]) -> tuple[int, float]:
    """Run a command; the most that it and what it started held at once, and its seconds."""
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
        raise SystemExit(
            f"Expected the stage to end well, got status {running.returncode}. Its own message "
            f"stands above: mend what that names, and measure again."
        )
    return peak, time.monotonic() - begin


def run_stage(name: str, folder: Path, cores: int, gigabytes: float) -> None:
    """Run one stage in this process."""
    workspace = Workspace(folder / "results")
    if name == "ingest":
        run_ingest(workspace, folder / "image.tif", cores)
    elif name == "split":
        run_split(workspace, folder.parent / "model", gigabytes)
    elif name == "predict":
        run_predict(workspace, cores)
    else:
        run_stitch(workspace, cores)


def measure(side: int, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Peak megabytes of each stage on a square image of `side` pixels."""
    folder.mkdir()
    write_image(folder / "image.tif", side)
    megabytes = {}
    for name in STAGES:
        command = [sys.executable, "-m", "scripts.benchmark.memory", "--stage", name]
        command += ["--folder", str(folder), "--cores", str(options.cores)]
        peak, seconds = peak_bytes([*command, "--memory", str(options.memory)])
        megabytes[name] = peak / MEGABYTE
        sys.stdout.write(f"{side:6} px  {name:8} {megabytes[name]:8.0f} MB {seconds:7.1f} s\n")
        sys.stdout.flush()
    return megabytes


def compare(options: argparse.Namespace) -> float:
    """Measure both images; the ratio of their peaks over all stages."""
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_model(folder / "model", options.width)
        small = measure(options.small, folder / "small", options)
        large = measure(options.large, folder / "large", options)
    for stage in STAGES:
        sys.stdout.write(f"{stage:8} {large[stage] / small[stage]:.3f}\n")
    ratio = max(large.values()) / max(small.values())
    pixels = (options.large / options.small) ** 2
    sys.stdout.write(
        f"peak     {ratio:.3f}  ({max(small.values()):.0f} MB and {max(large.values()):.0f} MB, "
        f"for {pixels:.0f} times the pixels; at most {BAR})\n"
    )
    return ratio


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark.memory",
        description=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--small", type=int, default=4096, help="side of the small image in pixels; 4096")
    add("--large", type=int, default=16384, help="side of the large image in pixels; 16384")
    add("--width", type=int, default=1, help="channels of the network's first level; 1")
    add("--cores", type=int, default=psutil.cpu_count(), help="CPUs to use; default all")
    add("--memory", type=float, default=8.0, help="GB that a worker may use, as in the config; 8")
    add("--folder", type=Path, help="folder for the images; default the system's temporary one")
    add("--stage", choices=STAGES, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    options = parse_options()
    if options.stage:
        run_stage(options.stage, options.folder, options.cores, options.memory)
    elif compare(options) > BAR:
        sys.exit(1)
