"""What measures runs, so that a figure in a text can be measured again."""

import json
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import pytest
import torch
from conftest import REPOSITORY

from unet.model.architecture import Architecture
from unet.network.unet import UNet

MODULES = (
    *("scripts.benchmark", "scripts.benchmark.scale"),
    *("scripts.benchmark.memory", "scripts.benchmark.damage"),
)


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module from the checkout, as its help says."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("module", MODULES)
def test_help_explains_a_benchmark(module: str):
    done = run_module(module, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m {module} ")


@pytest.mark.slow
def test_the_pipeline_is_measured_beside_the_network_alone(tmp_path: Path):
    small = ("--size", "256", "--width", "1", "--rounds", "1", "--precisions", "float32")
    file = tmp_path / "figures.json"
    done = run_module(MODULES[0], "--only", "network", *small, "--json", str(file))
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text(encoding="utf-8"))
    (seconds,) = result["network"]["rounds"]
    stages = ("ingest", "split", "predict", "stitch")
    assert seconds["pipeline float32"] == pytest.approx(
        sum(seconds[f"{stage} float32"] for stage in stages)
    )
    assert 0 < seconds["predict, workers started float32"] < seconds["predict float32"]
    assert result["network"]["ratios"]["plain loop / pipeline float32"] == pytest.approx(
        seconds["plain loop"] / seconds["pipeline float32"]
    )


@pytest.mark.slow
def test_blocks_and_files_are_measured_against_bars():
    done = run_module(MODULES[1], "--blocks", "100", "--done", "20", "--files", "50")
    _, row, restart, files = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert row.split()[0] == "100"
    assert row.split()[4] == "20", "blocks that were really done"
    assert restart.startswith("restart after 50 finished blocks: ")
    assert files.startswith("100,000 x 100,000 px: ")


def test_the_plain_network_computes_what_the_network_does():
    """Else the comparison would be with another network."""
    alternatives = run_path(str(REPOSITORY / "scripts" / "benchmark" / "alternatives.py"))
    plain_unet = alternatives["PlainUNet"]
    torch.manual_seed(0)
    image, network = torch.rand(1, 1, 188, 188), UNet(Architecture.of(width=2)).eval()
    with torch.inference_mode():
        expected = network(image)
        torch.testing.assert_close(plain_unet(network, padding=0)(image), expected)
        assert plain_unet(network, padding=1)(torch.rand(1, 1, 192, 192)).shape[2:] == (192, 192)
