"""What a path or URL names, and what is told of it: no server is asked here."""

import os
from pathlib import Path

import pytest
from conftest import REPOSITORY

from unet.config import read_config
from unet.errors import ConfigError
from unet.storage import server
from unet.storage.location import RemotePath, locate

KEY, SECRET = "key-of-the-test", "Secret/of+the+test"
SCHEMA = REPOSITORY / "workflow" / "schemas" / "config.schema.yaml"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b.tif", Path("a/b.tif")),
        ("~/b.tif", Path.home() / "b.tif"),
        ("file:///a/b%20c.tif", Path("/a/b c.tif")),
        ("file://localhost/a", Path("/a")),
        ("a/http://x", Path("a/http:/x")),
        ("s3://bucket", RemotePath("s3://bucket", "")),
        ("s3://bucket/a%20/b c.zarr/", RemotePath("s3://bucket", "a%20/b c.zarr")),
        ("https://host:81/a%20b.tif", RemotePath("https://host:81", "a b.tif")),
    ],
)
def test_a_path_or_url_is_located(text, expected):
    assert locate(text) == expected
    assert locate(str(expected)) == expected


SECRET_URLS = [
    f"s3://{KEY}:{SECRET}@bucket/image.tif",
    f"s3://{SECRET}@bucket/image.tif",
    f"https://{KEY}:{SECRET}@host/image.tif",
    f"https://host/image.tif?X-Amz-Signature={SECRET}",
    f"gs://{SECRET}/image.tif",
    f"s3://bucket/../{SECRET}",
    f"s3://bucket//{SECRET}",
    f"file://{SECRET}/image.tif",
]


@pytest.mark.parametrize("url", SECRET_URLS)
def test_a_url_that_may_hold_a_secret_is_refused_and_not_repeated(url, tiny_model):
    images = [{"name": "a", "path": url, "model": str(tiny_model.folder)}]
    with pytest.raises(ConfigError, match=r"^images\[0\] \(a\): Expected a ") as refused:
        read_config({"images": images}, SCHEMA)
    images[0]["path"] = "s3://bucket/a.tif"
    with pytest.raises(ConfigError, match=r"^stores: Expected a ") as refused_too:
        read_config({"images": images, "stores": url}, SCHEMA)
    for said in (str(refused.value), str(refused_too.value)):
        assert KEY not in said
        assert SECRET not in said


def test_the_configuration_resolves_paths_and_asks_no_server(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a b.npy").touch()
    paths = {"home": "~/a b.npy", "file": f"file://{tmp_path}/a%20b.npy", "s3": "s3://no/such"}
    images = [
        {"name": name, "path": path, "model": str(tiny_model.folder)}
        for name, path in paths.items()
    ]
    config = read_config({"images": images, "stores": "s3://no/stores/"}, SCHEMA)
    found = {name: image.source.path for name, image in config.images.items()}
    assert found == {**dict.fromkeys(("home", "file"), f"{tmp_path}/a b.npy"), "s3": "s3://no/such"}
    assert config.stores == "s3://no/stores"


def test_stores_are_not_written_to_a_web_server(tiny_model):
    images = [{"name": "a", "path": "s3://bucket/a.tif", "model": str(tiny_model.folder)}]
    with pytest.raises(ConfigError, match="a web server is read only"):
        read_config({"images": images, "stores": "https://host/stores"}, SCHEMA)


def test_the_usual_files_of_aws_are_read_where_the_environment_is_silent(tmp_path, monkeypatch):
    (tmp_path / "config").write_text("[profile lab]\nregion = eu-1\nendpoint_url = http://h:1\n")
    (tmp_path / "credentials").write_text(
        "[lab]\naws_access_key_id = a\naws_secret_access_key = %b\n[default]\nregion = no\n"
    )
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    keys = {"access_key_id": "a", "secret_access_key": "%b"}
    of_server = {"region": "eu-1", "endpoint_url": "http://h:1"}
    assert server._of_aws_files() == {**keys, **of_server}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    assert server._of_aws_files() == of_server
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://other")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "other")
    assert server._of_aws_files() == {}
    (tmp_path / "credentials").write_text(f"{SECRET}\n")
    with pytest.raises(ConfigError, match="to be a file of AWS settings") as refused:
        server._of_aws_files()
    assert SECRET not in str(refused.value)
