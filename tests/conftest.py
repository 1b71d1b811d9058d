"""What tests share: tiny networks with seeded weights, small images, and the real workflow."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import yaml
from hypothesis import settings
from numpy.typing import NDArray

from unet.execution.machines import Machines
from unet.execution.pool import connect
from unet.model.architecture import Architecture
from unet.model.folder import ModelSpec
from unet.network.unet import UNet
from unet.network.weights import save_model

# Properties are checked on the same cases everywhere, and never against a clock.
settings.register_profile("project", max_examples=50, deadline=None, derandomize=True)
settings.load_profile("project")

REPOSITORY = Path(__file__).resolve().parents[1]

ModelMaker = Callable[..., ModelSpec]
Workflow = Callable[..., subprocess.CompletedProcess[str]]


def picture(*shape: int, dtype: str = "uint8", seed: int = 0) -> NDArray[Any]:
    """Bright discs on a dark, noisy ground; `shape` is (..., y, x), each plane another."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[: shape[-2], : shape[-1]]
    planes = rng.normal(60, 8, (int(np.prod(shape[:-2])), *shape[-2:]))
    for plane in planes:
        for _ in range(max(3, shape[-2] * shape[-1] // 2000)):
            centre, radius = rng.uniform(0, shape[-2:]), rng.uniform(4, 12)
            plane[np.hypot(y - centre[0], x - centre[1]) < radius] += 90
    return planes.clip(0, 255).reshape(shape).astype(dtype)


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its path in it: two that are equal are the same bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make_tiny_model(folder: Path, seed: int = 0, **network: Any) -> ModelSpec:
    """Write the folder of a tiny network with seeded random weights.

    network  arguments of UNet; by default 1 channel, 2 classes, width 2, depth 1, 2D. Also `name`
             and `normalisation` of model.yaml.
    """
    said: dict[str, Any] = {
        "name": network.pop("name", folder.name),
        "normalisation": network.pop("normalisation", {"method": "zscore"}),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = UNet(Architecture.of(**{"width": 2, "depth": 1, **network}))
    classes = built.architecture.classes
    said["classes"] = ["background", *(f"class-{number}" for number in range(1, classes))]
    return save_model(folder, built, said)


@pytest.fixture
def quiet_tifffile() -> Iterator[None]:
    """tifffile logs what it finds wrong, where that is on purpose."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    yield
    logging.getLogger("tifffile").setLevel(logging.WARNING)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=4, help="moments of each stage that it is killed at"
    )


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> ModelMaker:
    """Makes model folders, each in a place of its own: `make_model(dims=3, classes=3)`."""

    def make(**network: Any) -> ModelSpec:
        return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", **network)

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model: ModelMaker) -> ModelSpec:
    """A 2D network of two classes for images of one channel. Read it only; tests share it."""
    return make_model()


@pytest.fixture(scope="session")
def small_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grey TIFF of 150 x 210 uint8 pixels. Read it only; tests share it."""
    path = tmp_path_factory.mktemp("image") / "small.tif"
    tifffile.imwrite(path, picture(150, 210), compression="zlib", rowsperstrip=32)
    return path


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    """One worker that tests share: its start takes longer than most of them."""
    with connect(Machines.for_data(None, 1)) as workers:
        yield Machines.for_data(workers.client.scheduler.address, 1)


@pytest.fixture(scope="session")
def run_workflow() -> Workflow:
    """Runs the real snakemake on a configuration: `run_workflow(config, folder, "--dry-run")`."""

    def run(
        config: Any, folder: Path, *arguments: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        (folder / "config").mkdir(parents=True, exist_ok=True)
        (folder / "config" / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        arguments = ("--directory", str(folder), "--cores", "2", *arguments)
        return snakemake(*arguments, cache=folder, **environment)

    return run


def snakemake(
    *arguments: str,
    cache: Path,
    snakefile: Path = REPOSITORY / "workflow" / "Snakefile",
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run the snakemake of this Python on the workflow, undisturbed by the user's settings.

    environment  variables on top
    """
    command = [str(Path(sys.executable).with_name("snakemake"))]
    command += ["--snakefile", str(snakefile), *arguments]
    # Snakemake's own deprecations are not this project's: warnings stay what Python makes them.
    dropped = ("PYTHONWARNINGS", "SNAKEMAKE_PROFILE")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    # Also those that Dask sets in this process while the workers of another test are open.
    kept = {key: value for key, value in kept.items() if not key.startswith("DASK_")}
    return subprocess.run(
        command,
        env={**kept, "XDG_CACHE_HOME": str(cache / ".cache"), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
