"""The two ways to install: a wheel, outside the checkout, and `uv sync` in a fresh clone.

Each starts from the files that a clone has, in a folder of its own, so that nothing is built in the
checkout and nothing that lies about in it is found by luck.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.slow

UV = str(Path(sys.executable).with_name("uv"))
EXAMPLE = """\
import torch
from unet import UNet; model = UNet(); shape = model(torch.rand((1, 1, 572, 572))).shape
assert shape == (1, 2, 388, 388), shape
"""
SHIPPED = """\
import numpy
import unet
probabilities = unet.predict(unet.load_model("fluo-nuclei"), numpy.eye(70, 90, dtype="uint8"))
assert probabilities.shape == (2, 70, 90), probabilities.shape
assert abs(probabilities.sum(axis=0) - 1).max() < 1e-6
print(unet.__file__)
"""


def clean_environment() -> dict[str, str]:
    """The variables of this process, less those that lead to this environment's packages."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT")
    return {key: value for key, value in os.environ.items() if key not in dropped}


def uv_environment() -> dict[str, str]:
    """The same, and where pip finds packages: uv does not read pip's own settings."""
    names = {"find-links": "UV_FIND_LINKS", "index-url": "UV_DEFAULT_INDEX"}
    variables = clean_environment() | {"UV_PYTHON": sys.executable, "UV_PYTHON_DOWNLOADS": "never"}
    for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
        key, _, value = line.partition("=")
        name = names.get(key.rpartition(".")[2])
        if name:
            variables.setdefault(name, ",".join(ast.literal_eval(value).split()))
    return variables


def run(*command: str, folder: Path | None = None, variables: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=variables or clean_environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a fresh clone holds: the files that git tracks, as they are now."""
    listed = run("git", "ls-files", "-z", folder=REPOSITORY).split("\0")
    for name in filter(None, listed):
        target = tmp_path / "clone" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, target)
    return tmp_path / "clone"


def assert_prints_the_shapes(printed: str) -> None:
    assert ">>> from unet import UNet" in printed
    assert "torch.Size([1, 2, 388, 388])" in printed
    assert "down.0   (1, 64, 568, 568)" in printed


def test_a_wheel_works_outside_of_the_checkout(clone: Path, tmp_path: Path) -> None:
    """It holds the shipped models; the other packages are those that the tests run with."""
    run(UV, "build", "--wheel", "--quiet", folder=clone, variables=uv_environment())
    (wheel,) = (clone / "dist").glob("unet_stitch-*.whl")
    venv, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(UV, "venv", "--quiet", str(venv), variables=uv_environment())
    python = str(venv / "bin" / "python")
    install = (UV, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python)
    run(*install, str(wheel), variables=uv_environment())
    (packages,) = (venv / "lib").glob("python3.*/site-packages")
    # A path that stands in a .pth file comes last, and is not searched for .pth files in turn: so
    # the editable install of the checkout, which is one, stays unseen.
    others = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (packages / "others.pth").write_text("\n".join(others) + "\n", encoding="utf-8")

    imported = run(python, "-I", "-c", SHIPPED, folder=elsewhere).strip()
    assert Path(imported) == packages / "unet" / "__init__.py"
    run(python, "-I", "-c", EXAMPLE, folder=elsewhere)
    assert_prints_the_shapes(run(python, "-I", "-m", "unet", folder=elsewhere))


@pytest.mark.timeout(900)  # where the packages are not in uv's cache yet, it downloads them
def test_uv_sync_gives_a_working_environment(clone: Path, tmp_path: Path) -> None:
    """With the pinned versions, though no lock file is committed, and with pip, for the demo."""
    assert not (clone / "uv.lock").exists()
    run(UV, "sync", "--quiet", folder=clone, variables=uv_environment())
    python = str(clone / ".venv" / "bin" / "python")
    freeze = (UV, "pip", "freeze", "--exclude-editable", "--python", python)
    installed = run(*freeze, variables=uv_environment()).splitlines()
    pinned = (clone / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    free = ("pip==", "setuptools==")  # tools, not libraries: any version does
    others = {line.partition("+")[0].lower() for line in installed if not line.startswith(free)}
    assert len(others) > 50
    assert others - set(pinned.splitlines()) == set()
    assert_prints_the_shapes(run(python, "-I", "-m", "unet", folder=tmp_path))
    assert run(python, "-m", "pip", "--version").startswith("pip ")
