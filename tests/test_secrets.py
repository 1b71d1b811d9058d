"""What is secret in a configuration reaches no log, message or file of Snakemake."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Workflow, files_in
from hypothesis import given
from hypothesis import strategies as st

from unet.config import read_config
from unet.errors import ConfigError, StoreError, UserError

SCHEMA = REPOSITORY / "workflow" / "schemas" / "config.schema.yaml"
SECRET = "0123456789abcdef-secret"
URLS = (
    f"https://bucket.example/a.tif?X-Amz-Credential=key&X-Amz-Signature={SECRET}",
    f"https://user:{SECRET}@host.example/a.tif",
    f"s3://bucket/a.zarr?token={SECRET}",
    f"tcp://user:{SECRET}@host.example:8786",
)


def places(value: Any, url: str) -> list[Any]:
    """Copies of a configuration with `url` for each of its values and keys, one at a time."""
    if isinstance(value, dict):
        changed = [{**value, url: 1}]
        for key, part in value.items():
            changed += [{**value, key: other} for other in places(part, url)]
            changed.append({url if name == key else name: each for name, each in value.items()})
    elif isinstance(value, list):
        changed = [[other] for other in places(value[0], url)]
    else:
        changed = []
    return [*changed, url, [url], {url: url}]


def configuration(image: str) -> dict[str, Any]:
    """One with every section, so that every key has a place."""
    return {
        "images": [{"name": "a", "path": image, "model": "fluo-nuclei", "axes": "yx"}],
        "stores": "stores",
        "predict": {"device": "auto", "scheduler": "tcp://host:1", "precision": "float32"},
        "split": {"memory": 4, "shard": [64, 64]},
        "evaluate": [{"name": "a", "label": image, "annotated": image, "measures": ["dice"]}],
    }


@pytest.mark.parametrize("url", URLS)
def test_no_sentence_about_a_configuration_repeats_a_secret_of_a_url(
    url: str, small_image: Path
) -> None:
    """Wherever the URL stands, also where none may be; and each of them is refused."""
    changed = places(configuration(str(small_image)), url)
    assert len(changed) > 60
    for config in changed:
        with pytest.raises(ConfigError) as told:
            read_config(config, SCHEMA)
        assert SECRET not in str(told.value)


TEXT = st.text(st.characters(categories=("L", "N", "P", "S"), exclude_characters="'\"/@?"))


@given(before=TEXT, host=TEXT, after=TEXT, query=st.booleans(), error=st.sampled_from([0, 1]))
def test_a_message_keeps_all_of_a_url_but_its_secret(
    before: str, host: str, after: str, query: bool, error: int
) -> None:
    kind = (ConfigError, StoreError)[error]
    url = f"http://{host}/a?k={SECRET}{after}" if query else f"http://u{after}:{SECRET}@{host}/a"
    told = str(kind(f"{before} Expected {url!s} to be there, is it '{url}'?"))
    assert SECRET not in told
    kept = f"http://{host}/a?..." if query else f"http://...@{host}/a"
    assert told == f"{before} Expected {kept} to be there, is it '{kept}'?"
    assert isinstance(kind(url), UserError)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["path", "scheduler", "name"])
def test_a_refused_configuration_leaves_its_secret_in_no_file(
    key: str, run_workflow: Workflow, small_image: Path, tmp_path: Path
) -> None:
    image = shutil.copy(small_image, tmp_path / "image.tif")
    config = {"images": [{"name": "a", "path": str(image), "model": "fluo-nuclei"}], "predict": {}}
    (config["predict"] if key == "scheduler" else config["images"][0])[key] = URLS[1]
    refused = run_workflow(config, tmp_path)
    assert refused.returncode != 0
    left = files_in(tmp_path)
    assert SECRET.encode() in left.pop("config/config.yaml")
    assert left
    for said in (*left.values(), refused.stdout.encode(), refused.stderr.encode()):
        assert SECRET.encode() not in said
