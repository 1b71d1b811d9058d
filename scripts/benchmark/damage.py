"""Damages runs at random, and counts how that ends: `python -m scripts.benchmark.damage`.

A project of twelve tiny images is made by the real workflow: some are finished, some were stopped
before `stitch`, some in the middle of `predict`. In a copy of it, one random file of each image is
damaged in a random way. Then come the plain command and `snakemake verify`. For each image it ends

right     every level of the image and of the mask has the pixels that it had
named     a stage ended with an error that is a sentence
WRONG     other pixels, and no error: after the plain command where the damage shows in the size or
          the time of the file, after `verify` in any case
UNCLEAR   an error that is no sentence of this project
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
import yaml
import zarr
from numpy.typing import NDArray

from scripts.benchmark.figures import say
from unet.model.architecture import Architecture
from unet.network.unet import UNet
from unet.network.weights import save_model

REPOSITORY = Path(__file__).resolve().parents[2]
SHAPE = (2, 600, 70)
FINISHED, STOPPED, HALF = "finished", "stopped", "half"
STATES = {FINISHED: 8, STOPPED: 2, HALF: 2}
IMAGES = [f"{state}{number}" for state, count in STATES.items() for number in range(count)]
SLABS = ("--set-scatter", "slab=2")
FINGERPRINT = re.compile(r"-[0-9a-f]{16}(?=[/.]|$)")
SENTENCE = re.compile(r"\d\d:\d\d:\d\d \w+Error: [A-Z]")
SILENT = 0.5  # of the damages that keep a file's size leave its time as it was, as a bad disk does


# --- Ways to damage a file ----------------------------------------------------------------------


@dataclass(frozen=True)
class Victim:
    """A file to damage.

    neighbour  a file of the same kind, or None
    older      this file in a run of another model and threshold, or None
    """

    file: Path
    neighbour: Path | None
    older: Path | None


def empty(victim: Victim, _: random.Random) -> None:
    """Nothing is left in it."""
    os.truncate(victim.file, 0)


def cut(victim: Victim, rng: random.Random) -> None:
    """Only its beginning is left."""
    os.truncate(victim.file, rng.randrange(victim.file.stat().st_size or 1))


def flip(victim: Victim, rng: random.Random) -> None:
    """One bit is another."""
    content = bytearray(victim.file.read_bytes())
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    victim.file.write_bytes(content)


def delete(victim: Victim, _: random.Random) -> None:
    """It is gone."""
    victim.file.unlink()


def swap(victim: Victim, _: random.Random) -> None:
    """It and its neighbour are in each other's place."""
    if victim.neighbour:
        one, other = victim.file.read_bytes(), victim.neighbour.read_bytes()
        victim.file.write_bytes(other)
        victim.neighbour.write_bytes(one)


def age(victim: Victim, _: random.Random) -> None:
    """It is that of a run of another model and threshold."""
    if victim.older:
        victim.file.write_bytes(victim.older.read_bytes())


def scramble(victim: Victim, rng: random.Random) -> None:
    """As many bytes, which are no text."""
    victim.file.write_bytes(bytes([255]) + rng.randbytes(max(0, victim.file.stat().st_size - 1)))


WAYS: tuple[Callable[[Victim, random.Random], None], ...] = (
    *(empty, cut, flip, delete, swap, age, scramble),
)


def find_victim(file: Path, root: Path, older: Path) -> Victim:
    """A file of a run, in `root`, with what it may be exchanged for; `older` is another run."""
    same = [each for each in sorted(file.parent.iterdir()) if each.is_file() and each != file]
    alike = [each for each in same if each.suffix == file.suffix]
    kind = FINGERPRINT.sub("", file.relative_to(root).as_posix())
    others = (each for each in files_of(older) if each.relative_to(older).as_posix())
    found = (o for o in others if FINGERPRINT.sub("", o.relative_to(older).as_posix()) == kind)
    return Victim(file, alike[0] if alike else None, next(found, None))


def files_of(root: Path) -> list[Path]:
    """Every file of a run that has content: locks have none."""
    return [each for each in sorted(root.rglob("*")) if each.is_file() and each.stat().st_size]


def damage(
    victim: Victim, way: Callable[[Victim, random.Random], None], rng: random.Random
) -> bool:
    """Damage a file. Returns whether the look of some file, its size or time, has changed."""
    touched = [file for file in (victim.file, victim.neighbour) if file and file.exists()]
    before = {file: file.stat() for file in touched}
    for file in touched:  # a result shares files with the copy of its image: of one only
        if file.stat().st_nlink > 1 and rng.random() < SILENT:
            content = file.read_bytes()
            file.unlink()
            file.write_bytes(content)
            os.utime(file, ns=(before[file].st_atime_ns, before[file].st_mtime_ns))
    way(victim, rng)
    sizes = {file: file.stat().st_size if file.exists() else None for file in touched}
    if sizes != {file: stat.st_size for file, stat in before.items()} or rng.random() >= SILENT:
        return True
    for file, stat in before.items():
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return False


# --- Runs ---------------------------------------------------------------------------------------


def make_project(folder: Path, seed: int) -> None:
    """A project with all its runs, in their states."""
    images = []
    for number, name in enumerate(IMAGES):
        pixels = make_pixels(number)
        path = f"{name}.zarr" if number % 3 == 0 else f"{name}.tif"
        if path.endswith(".zarr"):
            zarr.create_array(folder / path, data=pixels, dimension_names=["z", "y", "x"])
        else:
            tifffile.imwrite(folder / path, pixels, metadata={"axes": "ZYX"})
        images.append({"name": name, "path": path, "model": "model"})
    torch.manual_seed(seed)
    description = {"name": "model", "classes": ["background", "disc"]}
    description["normalisation"] = {"method": "zscore"}  # type: ignore[assignment]
    (folder / "model").mkdir()
    save_model(folder / "model", UNet(Architecture.of(width=2, depth=1)), description)
    config = {
        "images": images,
        "split": {"shard": [64, 64], "chunk": [32, 32]},
        "stitch": {"threshold": 0.5 - seed / 100},
    }
    (folder / "config").mkdir()
    (folder / "config" / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    targets = {
        FINISHED: ["stitch.json"],
        STOPPED: ["predict/1-of-2.json", "predict/2-of-2.json"],
        HALF: ["predict/1-of-2.json"],
    }
    wanted = [
        f"results/{name}/{target}"
        for name in IMAGES
        for target in targets[name.rstrip("0123456789")]
    ]
    done = run_workflow(folder, *wanted)
    if done.returncode:
        sys.exit(done.stderr)


def make_pixels(seed: int) -> NDArray[np.uint8]:
    """Bright discs on a dark, noisy ground."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[: SHAPE[1], : SHAPE[2]]
    pixels = rng.normal(60, 8, SHAPE)
    for plane in pixels:
        for _ in range(20):
            centre = rng.uniform(0, SHAPE[1:])
            plane[np.hypot(y - centre[0], x - centre[1]) < rng.uniform(4, 12)] += 90
    return pixels.clip(0, 255).astype(np.uint8)


def run_workflow(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The real workflow, on one core."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    command += ["--directory", str(folder), "--cores", "1", "--keep-going"]
    return subprocess.run(  # noqa: S603 - a fixed command
        [*command, *arguments, *SLABS], capture_output=True, text=True, check=False
    )


def read_levels(result: Path) -> dict[str, NDArray[Any]]:
    """Every level of the image and of the mask of a result."""
    folders = [each.parent for each in sorted(result.rglob("zarr.json"))]
    arrays = [each for each in folders if each.name.isdecimal()]
    return {str(each.relative_to(result)): _read(each) for each in arrays}


def _read(array: Path) -> NDArray[Any]:
    opened: zarr.Array[Any] = zarr.open_array(array, mode="r")
    pixels: NDArray[Any] = np.asarray(opened[...])
    return pixels


def is_right(result: Path, expected: dict[str, NDArray[Any]]) -> bool:
    """Whether a result reads, by Zarr alone, as it should."""
    try:
        actual = read_levels(result)
    except (OSError, ValueError, RuntimeError, KeyError):
        return False
    return actual.keys() == expected.keys() and all(
        np.array_equal(actual[name], expected[name]) for name in expected
    )


# --- Counting -----------------------------------------------------------------------------------


def judge(
    folder: Path, name: str, stage: str, expected: dict[str, NDArray[Any]], may_be_wrong: bool
) -> str | None:
    """How a command has ended for an image; None where it is right, as far as it has to be."""
    root = folder / "results" / name
    if (root / f"{stage}.json").exists():
        is_fine = may_be_wrong or is_right(root / f"{name}.ome.zarr", expected)
        return None if is_fine else "WRONG"
    logs = [each.read_text(errors="replace") for each in (folder / "logs" / name).glob("*.log")]
    return "named" if any(SENTENCE.search(log) for log in logs) else "UNCLEAR"


def run_round(
    project: Path, older: Path, seed: int, expected: dict[str, dict[str, NDArray[Any]]]
) -> Iterator[tuple[str, str]]:
    """Damage one file of each image of a copy of the project; yields what, and how it ended."""
    rng = random.Random(seed)  # noqa: S311 - so that a case can be done again
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "project"
        shutil.copytree(project, folder, symlinks=True)
        shutil.rmtree(folder / "logs")
        said, is_seen = {}, {}
        for name in IMAGES:
            root = folder / "results" / name
            victim = find_victim(rng.choice(files_of(root)), root, older / "results" / name)
            way = rng.choice(WAYS)
            is_seen[name] = damage(victim, way, rng)
            said[name] = f"{name}: {way.__name__} {victim.file.relative_to(root)}"
            said[name] += "" if is_seen[name] else ", of the same size and time"
        first = run_workflow(folder)
        ends = {n: judge(folder, n, "stitch", expected[n], not is_seen[n]) for n in IMAGES}
        second = run_workflow(folder, "verify")
        for name in IMAGES:
            end = ends[name] or judge(folder, name, "verify", expected[name], False) or "right"
            if end in ("WRONG", "UNCLEAR"):
                said[name] += f"\n{first.stderr[-2000:]}\n{second.stderr[-2000:]}"
            yield said[name], end


def main() -> None:
    """Parse the command line, make the runs, and count."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark.damage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=100, help="damages, rounded up to twelves")
    parser.add_argument("--first", type=int, default=0, help="the seed of the first round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as parent:
        project, older, whole = (Path(parent, name) for name in ("project", "older", "whole"))
        for seed, folder in enumerate((project, older)):
            folder.mkdir()
            make_project(folder, seed)
        shutil.copytree(project, whole, symlinks=True)
        run_workflow(whole)
        expected = {n: read_levels(whole / "results" / n / f"{n}.ome.zarr") for n in IMAGES}
        ends: Counter[str] = Counter()
        for number in range(-(-options.count // len(IMAGES))):
            for said, end in run_round(project, older, options.first + number, expected):
                ends[end] += 1
                say(f"{options.first + number} {end}: {said}")
    say(", ".join(f"{count} {end}" for end, count in sorted(ends.items())))
    sys.exit(1 if ends["WRONG"] or ends["UNCLEAR"] else 0)


if __name__ == "__main__":
    main()
