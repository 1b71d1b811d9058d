"""Workers as jobs of Slurm, where Slurm or its settings are not there: told at once."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import dask
import pytest

from unet import jobqueue
from unet.errors import ConfigError

JOB = {"jobqueue.slurm.cores": 1, "jobqueue.slurm.memory": "1GB"}


def installed(folder: Path, programs: tuple[str, ...]) -> str:
    """A PATH on which only `programs` are."""
    folder.mkdir(exist_ok=True)
    for name in programs:
        (folder / name).symlink_to("/bin/false")
    return str(folder)


SOME = [names for count in range(3) for names in combinations(jobqueue.PROGRAMS, count)]


@pytest.mark.parametrize("programs", SOME, ids=lambda names: "+".join(names) or "none")
def test_a_program_of_slurm_that_is_not_there_is_named(
    programs: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", installed(tmp_path / "bin", programs))
    missing = ", ".join(name for name in jobqueue.PROGRAMS if name not in programs)
    with (
        dask.config.set(JOB),
        pytest.raises(ConfigError, match=rf"on the PATH, found no {missing}\. .* login node"),
        jobqueue.slurm_workers(1),
    ):
        pass


SETTINGS = {
    "no cores": ({"cores": None}, "Expected `cores` and `memory`"),
    "no memory": ({"memory": None}, "Expected `cores` and `memory`"),
    "a network that is not there": ({"interface": "none0"}, "'none0' is not a valid network"),
    "a port that is none": ({"scheduler-options": {"port": "none"}}, "Expected a scheduler by"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_make_no_scheduler_are_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, told = SETTINGS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", installed(tmp_path / "bin", jobqueue.PROGRAMS))
    with (
        dask.config.set(JOB | {f"jobqueue.slurm.{key}": value for key, value in keys.items()}),
        pytest.raises(ConfigError, match=told),
        jobqueue.slurm_workers(1),
    ):
        pass
    assert not list(tmp_path.glob(".jobqueue-*")), "the keys of a run stay behind"


def test_a_command_that_is_not_there_is_told_before_jobs_are_submitted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        jobqueue.main(["--jobs", "1", "no-such-program"])
    assert "there is no program 'no-such-program'" in capsys.readouterr().err
