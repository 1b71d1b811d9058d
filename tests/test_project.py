"""The files of a public project are true: they parse, have GitHub's form, and agree with pyproject.

Which keys GitHub expects, its documentation says: of workflows, of issue forms, and of CITATION.cff
the schema of the Citation File Format 1.2.0.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY
from packaging.requirements import Requirement

GITHUB = REPOSITORY / ".github"
FORMS = sorted(
    set((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) - {GITHUB / "ISSUE_TEMPLATE/config.yml"}
)
PYTHON = "Programming Language :: Python :: "
# Where the test tools have another name than the program: the package of each program.
PACKAGES = {"lint-imports": "import-linter"}


def text(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def parsed(name: str | Path) -> Any:
    return yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8"))


def pyproject() -> dict[str, Any]:
    return tomllib.loads(text("pyproject.toml"))


def pythons() -> list[str]:
    """The versions of the classifiers, the oldest first."""
    stated = pyproject()["project"]["classifiers"]
    versions = [line.removeprefix(PYTHON) for line in stated if line.startswith(PYTHON)]
    return sorted(versions, key=lambda version: tuple(map(int, version.split("."))))


def targets() -> set[str]:
    return set(re.findall(r"^(\w+):", text("Makefile"), flags=re.MULTILINE))


def jobs() -> dict[str, Any]:
    return parsed(".github/workflows/test.yml")["jobs"]


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_a_workflow_has_the_form_that_github_expects():
    workflow = parsed(".github/workflows/test.yml")
    # YAML 1.1 reads the key `on` as true.
    assert set(workflow) == {"name", True, "permissions", "concurrency", "jobs"}
    assert set(workflow[True]) == {"push", "pull_request"}
    assert workflow["permissions"] == {"contents": "read"}
    for job in jobs().values():
        assert re.fullmatch(r"(ubuntu|macos)-latest", job["runs-on"])
        assert job["timeout-minutes"] <= 90
        for step in job["steps"]:
            assert len(step.keys() & {"run", "uses"}) == 1, step
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/none@v1"))


def test_the_workflow_runs_targets_that_are_there():
    assert commands(jobs()["readme"]) == ["make demo", "make test"]
    assert commands(jobs()["quick"]) == ["make check"]
    for job in jobs().values():
        assert {command.removeprefix("make ") for command in commands(job)} <= targets()


def test_the_workflow_runs_the_oldest_and_the_newest_python_that_are_stated():
    matrix = jobs()["readme"]["strategy"]["matrix"]["python"]
    assert matrix == [pythons()[0], pythons()[-1]]
    setup = [step["with"] for step in jobs()["quick"]["steps"] if "with" in step]
    assert setup == [{"python-version": pythons()[-1]}]
    assert pyproject()["project"]["requires-python"] == f">={pythons()[0]}"


def test_make_check_leaves_out_what_the_markers_name():
    """And nothing else: what is neither slow nor in need of a server is quick."""
    markers = [
        line.partition(":")[0] for line in pyproject()["tool"]["pytest"]["ini_options"]["markers"]
    ]
    quick = re.search(r"^QUICK := (.+)$", text("Makefile"), flags=re.MULTILINE)
    assert quick is not None
    assert quick[1] == " and ".join(f"not {marker}" for marker in markers)


def test_there_is_a_form_for_each_kind_of_issue():
    assert [form.stem for form in FORMS] == ["bug", "idea", "image"]
    assert parsed(".github/ISSUE_TEMPLATE/config.yml") == {"blank_issues_enabled": True}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_a_form_has_what_github_expects(form):
    content = parsed(form)
    assert set(content) == {"name", "description", "labels", "body"}
    assert len(content["name"]) > 3
    names = [field["id"] for field in content["body"]]
    assert len(set(names)) == len(names)
    for field in content["body"]:
        assert set(field) == {"type", "id", "attributes", "validations"}
        assert field["type"] in ("input", "textarea", "dropdown")
        assert re.fullmatch(r"[\w-]+", field["id"])
        assert field["attributes"].keys() >= {"label"}
        assert field["attributes"].keys() <= {
            "label",
            "description",
            "placeholder",
            "render",
            "options",
        }
        assert ("options" in field["attributes"]) == (field["type"] == "dropdown")
        assert isinstance(field["validations"]["required"], bool)


def test_a_citation_has_the_version_and_the_required_keys():
    citation = parsed("CITATION.cff")
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}
    assert citation["cff-version"] == "1.2.0"
    project = pyproject()["project"]
    assert citation["title"] == project["name"]
    assert str(citation["version"]) == project["version"]
    assert citation["license"] == project["license"]
    for reference in citation["references"]:
        assert reference.keys() >= {"type", "title", "authors"}


def test_the_changelog_can_be_released():
    """What comes next first, then a section for each version, the newest first."""
    sections = re.findall(r"^## (.+)$", text("CHANGELOG.md"), flags=re.MULTILINE)
    assert sections[0] == "[Unreleased]"
    versions = [
        re.fullmatch(r"\[(\d+\.\d+\.\d+)\]( - \d{4}-\d\d-\d\d)?", each) for each in sections[1:]
    ]
    assert all(versions), sections
    numbers = [version[1] for version in versions if version]
    assert numbers[0] == pyproject()["project"]["version"]
    assert numbers == sorted(
        numbers, key=lambda each: tuple(map(int, each.split("."))), reverse=True
    )
    kinds = set(re.findall(r"^### (.+)$", text("CHANGELOG.md"), flags=re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def hooks() -> list[dict[str, Any]]:
    (repository,) = parsed(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local", "a hook from elsewhere has versions of its own"
    return repository["hooks"]


def test_hooks_are_programs_of_the_test_tools():
    extra = {
        Requirement(each).name for each in pyproject()["project"]["optional-dependencies"]["test"]
    }
    for hook in hooks():
        program = hook["entry"].split()[0].removeprefix(".venv/bin/")
        assert PACKAGES.get(program, program) in extra
        assert Path(sys.executable).with_name(program).is_file()


def test_hooks_run_what_make_check_runs():
    recipe = re.search(r"^lint: .*\n((?:\t.+\n)+)", text("Makefile"), flags=re.MULTILINE)
    assert recipe is not None
    linted = [line.strip().removeprefix("$(BIN)/") for line in recipe[1].splitlines()]
    entries = [hook["entry"].removeprefix(".venv/bin/") for hook in hooks()]
    assert len(entries) == len(linted)
    for entry in entries:
        assert any(line.startswith(entry) for line in linted), entry


def test_pre_commit_reads_its_configuration():
    program = str(Path(sys.executable).with_name("pre-commit"))
    command = [program, "validate-config", ".pre-commit-config.yaml"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_uv_takes_the_versions_that_pip_takes():
    lines = text("constraints.txt").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert len(pins) > 100
    assert pyproject()["tool"]["uv"]["constraint-dependencies"] == pins


def test_no_lock_file_is_committed():
    """It would hold the addresses of one registry."""
    assert "uv.lock" in text(".gitignore").split()
    command = ["git", "ls-files", "--", "*.lock"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_contributing_names_what_is_there():
    """Every file, room and Makefile target that it names; NAME stands for a new one's."""
    page = text("CONTRIBUTING.md")
    named = re.findall(r"`((?:unet|tests|scripts|workflow)/[\w./-]+)`", page)
    assert len(named) > 20
    missing = [name for name in named if "NAME" not in name and not (REPOSITORY / name).exists()]
    assert missing == []
    assert set(re.findall(r"`make (\w+)`", page)) <= targets()
    layers = pyproject()["tool"]["importlinter"]["contracts"][0]["layers"]
    rooms = {room for layer in layers for room in layer.split(" | ")} - {"__main__", "jobqueue"}
    assert {
        room.removesuffix(".py").strip("/") for room in re.findall(r"`unet/(\w+(?:/|\.py))`", page)
    } == rooms


def test_contributing_says_of_every_block_what_runs_it():
    lines = text("CONTRIBUTING.md").splitlines()
    fences = [number for number, line in enumerate(lines) if line.startswith("```")][::2]
    assert len(fences) > 4
    for number in fences:
        mark = re.fullmatch(r"<!-- (run by|not run): (.+) -->", lines[number - 1])
        assert mark, lines[number + 1]
        file, _, name = mark[2].partition("::")
        if mark[1] == "run by" and name:
            assert f"def {name}(" in text(file)
        elif mark[1] == "run by":
            assert file.removeprefix("make ") in targets()
