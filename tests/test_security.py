"""What a run must not do to the machine it is on: listen to others, or execute what it reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import ModelMaker, Workflow, snakemake
from support import assert_loopback_only, listening, watched

from unet.errors import ModelError
from unet.execution import pool
from unet.execution.machines import Machines
from unet.model.folder import ModelSpec, find_model

PAYLOAD = '!!python/object/apply:os.system ["touch {}"]'


@pytest.mark.parametrize("devices", [(), ("0", "1")], ids=["CPU", "GPUs"])
def test_every_server_of_a_run_listens_on_loopback(devices: tuple[str, ...]) -> None:
    """Scheduler, workers, nannies and their status pages: whoever reaches them can run code."""
    with watched(listening) as found, pool.connect(Machines(None, devices, 1, 1)) as workers:
        assert len(workers.client.nthreads()) == max(1, len(devices))
    assert_loopback_only(found)


@pytest.mark.slow
def test_every_process_of_a_workflow_listens_on_loopback(
    run_workflow: Workflow, small_image: Path, tiny_model: ModelSpec, tmp_path: Path
) -> None:
    """Snakemake, and each of the stages with its scheduler, nannies and workers."""
    image = {"name": "image", "path": str(small_image), "model": str(tiny_model.folder)}
    with watched(listening) as found:
        done = run_workflow({"images": [image]}, tmp_path, "all", "verify")
    assert done.returncode == 0, done.stderr
    assert_loopback_only(found)
    assert len({process for process, _, _ in found}) >= 8, "not every stage was seen"


@pytest.mark.parametrize("target", ["all", "train"])
def test_a_configuration_is_not_executed(target: str, tmp_path: Path) -> None:
    """Snakemake reads it before this project does: so the real one is asked."""
    executed, config = tmp_path / "executed", tmp_path / "bad.yaml"
    config.write_text(f"images: {PAYLOAD.format(executed)}\ntrain: {PAYLOAD.format(executed)}\n")
    told = snakemake(
        *("--directory", str(tmp_path), "--cores", "1", target, "--configfile", str(config)),
        cache=tmp_path,
    )
    assert told.returncode != 0
    assert "not valid JSON or YAML" in told.stderr
    assert not executed.exists()


def test_a_model_s_description_is_not_executed(make_model: ModelMaker, tmp_path: Path) -> None:
    folder, executed = make_model().folder, tmp_path / "executed"
    described = folder / "model.yaml"
    described.write_text(described.read_text() + f"source: {PAYLOAD.format(executed)}\n")
    with pytest.raises(ModelError, match="python/object"):
        find_model(folder)
    assert not executed.exists()


def test_the_payload_would_execute_where_yaml_is_trusted(tmp_path: Path) -> None:
    executed = tmp_path / "executed"
    yaml.unsafe_load(PAYLOAD.format(executed))
    assert executed.exists()
