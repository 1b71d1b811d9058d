"""Rules that never compute; files a newcomer can read. Who may import what: see pyproject.toml."""

import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

MODULES = sorted((REPOSITORY / "unet").rglob("*.py"))


def test_planning_needs_no_torch():
    """So that Snakemake, which reads the configuration in every job, starts quickly."""
    code = (
        "import unet.config, unet.stages.split, unet.training.config, sys; "
        "print({'torch', 'scipy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_stage_has_one_name():
    for stage in ("ingest", "split", "predict", "stitch", "train", "evaluate"):
        assert (REPOSITORY / "unet" / "stages" / f"{stage}.py").is_file()
        assert (REPOSITORY / "scripts" / f"{stage}.py").is_file()
        rule = (REPOSITORY / "workflow" / "rules" / f"{stage}.smk").read_text()
        assert f"rule {stage}:" in rule
        assert f"../../scripts/{stage}.py" in rule


def test_models_that_were_trained_and_keys_of_a_killed_scheduler_are_never_committed():
    ignored = (REPOSITORY / ".gitignore").read_text(encoding="utf-8").split()
    assert {"/models/", ".jobqueue-*/"} <= set(ignored)


@pytest.mark.parametrize(
    ("page", "title", "least"), [("guarantees", "guarantee", 20), ("files", "promise", 8)]
)
def test_each_guarantee_names_a_test_that_is_there(page, title, least):
    text = (REPOSITORY / "docs" / f"{page}.md").read_text(encoding="utf-8")
    table = text.partition(f"| {title} | test |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()]
    assert len(rows) > least
    for guarantee, tests in rows:
        files = [REPOSITORY / "tests" / name for name in re.findall(r"test_\w+\.py", tests)]
        there = "".join(file.read_text(encoding="utf-8") for file in files)
        named = re.findall(r"`(test_\w+)`", tests)
        assert there, guarantee
        assert [name for name in named if f"def {name}(" not in there] == [], guarantee


def test_files_stay_small():
    lengths = {path.name: len(path.read_text().splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
