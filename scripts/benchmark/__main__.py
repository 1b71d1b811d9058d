"""How fast the pipeline is, beside other ways to do the same: `python -m scripts.benchmark`.

Two experiments, each in one run on one machine, on the CPU:

network  The network of 2015 with random weights on one image: by this pipeline from the file to
         the mask; by a plain loop over windows of 572 x 572; by MONAI's sliding window, where
         MONAI is installed; and the network alone, on the very windows of the pipeline.
data     The pipeline on a large image with the centre crop in the network's place: what moving
         the pixels costs.

The defaults take many minutes. To see in seconds whether all of it runs:

    python -m scripts.benchmark --size 512 --width 2 --rounds 1 --data-size 1024
"""

import argparse
import json
import logging
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scripts.benchmark import data, network
from scripts.benchmark.figures import say
from unet.execution import progress
from unet.network.inference import DTYPES

BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}
PACKAGES = ("torch", "numpy", "zarr", "dask", "distributed", "numcodecs")


def first_processor() -> dict[str, str]:
    """What Linux says of the first processor; nothing elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16; without that it only emulates it, slowly."""
    processor = first_processor()
    flags = f"{processor.get('flags')} {processor.get('Features')}".split()
    return not BFLOAT16_FLAGS.isdisjoint(flags)


def describe_machine(cores: int) -> dict[str, Any]:
    """What the figures depend on."""
    name = first_processor().get("model name")
    return {
        "processor": name or platform.processor() or platform.machine(),
        "system": platform.platform(),
        "cores": cores,
        "load before": os.getloadavg()[0],
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
    }


def show(title: str, result: dict[str, Any]) -> None:
    """A table on the terminal."""
    source = f", {result['source']}" if "source" in result else ""
    say(f"\n{title}, {result['image']} pixels{source}")
    for name, figures in result["figures"].items():
        say(f"  {name:36}" + "".join(f"{value:10.2f} {unit}" for unit, value in figures.items()))
    for name, ratio in result.get("ratios", {}).items():
        say(f"  {name:60}{ratio:8.3f}")
    for line in result.get("not measured", []):
        say(f"  {line}")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark",
        description=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", choices=("network", "data"), help="one experiment; default both")
    add("--size", type=int, default=1536, help="network: side of the image in pixels; 1536")
    add("--width", type=int, default=64, help="network: channels of its first level; 64")
    add(
        "--precisions",
        nargs="+",
        choices=tuple(DTYPES),
        default=list(DTYPES),
        help="network: default both; bfloat16 is left out where the processor has none",
    )
    add("--no-others", dest="others", action="store_false", help="network: no loop, no MONAI")
    add("--rounds", type=int, default=2, help="network: how often each way is run; 2")
    add("--data-size", type=int, default=16384, help="data: side of the image in pixels; 16384")
    add("--compression", default="zlib", help="data: of the TIFF, or none; zlib")
    add("--cores", type=int, default=os.cpu_count(), help="CPUs to use; default all")
    add("--memory", type=float, default=8.0, help="GB that a worker may use, as in the config; 8")
    add("--folder", type=Path, help="folder for the images; default the system's temporary one")
    add("--json", type=Path, help="file to write all figures to")
    options = parser.parse_args()
    options.compression = None if options.compression == "none" else options.compression
    return options


def main(options: argparse.Namespace) -> None:
    """Measure, and show what was measured."""
    progress.log.setLevel(logging.INFO)
    result = {"machine": describe_machine(options.cores)}
    say(json.dumps(result["machine"]))
    if options.only != "network":
        result["data"] = data.measure(options)
        show("data", result["data"])
    if options.only != "data":
        precisions = [p for p in options.precisions if p != "bfloat16" or has_bfloat16()]
        result["network"] = network.measure(options, precisions)
        show("network", result["network"])
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(parse_options())
