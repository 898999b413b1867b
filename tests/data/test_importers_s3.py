"""Sources and data sets on S3, over the real protocol on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest

from edm_ray.cli import main
from edm_ray.data.manifest import open_dataset
from edm_ray.data.verify import read_verified
from edm_ray.storage import uris
from tests.data.sources import make_cifar, make_folder, make_parquet, make_tar, make_zip, picture, pixels_of
from tests.storage.proxies import s3_server

IMAGES = pixels_of(6)
LABELS = [0, 1, 2, 2, 1, 0]
PNGS = [picture(image) for image in IMAGES]


def _forget_connections() -> None:
    for value in vars(uris).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server("pictures") as url:
        _forget_connections()
        yield url
    _forget_connections()


def _upload(endpoint: str, path: Path, key: str) -> str:
    client = boto3.client("s3", endpoint_url=endpoint)
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        name = key if path.is_file() else f"{key}/{file.relative_to(path).as_posix()}"
        client.put_object(Bucket="pictures", Key=name, Body=file.read_bytes())
    return f"s3://pictures/{key}"


def _source(kind: str, tmp_path: Path) -> Path:
    match kind:
        case "folder":
            return make_folder(tmp_path / "f", IMAGES, "abc")
        case "a.zip":
            return make_zip(tmp_path / kind, {f"{'abc'[v]}/{i}.png": PNGS[i] for i, v in enumerate(LABELS)})
        case "cifar-10-python.tar.gz":
            return make_cifar(tmp_path / kind, IMAGES, LABELS)
        case "a.parquet":
            return make_parquet(tmp_path / kind, {"img": PNGS, "label": LABELS})
    files = {f"{i}.png": png for i, png in enumerate(PNGS)}
    return make_tar(tmp_path / "a.tar", files | {f"{i}.cls": str(v).encode() for i, v in enumerate(LABELS)})


@pytest.mark.parametrize("kind", ["folder", "a.zip", "cifar-10-python.tar.gz", "a.parquet", "a.tar"])
def test_a_source_on_s3_gives_the_same_bytes_as_on_disk(tmp_path, endpoint, monkeypatch, kind):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # --endpoint-url wins, and is undone after the test
    path = _source(kind, tmp_path)
    remote = _upload(endpoint, path, f"from/{kind}")
    dest = f"s3://pictures/to/{kind}"
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_multipart_upload(Bucket="pictures", Key=f"to/{kind}/left-by-a-killed-attempt")
    assert main(["prepare", remote, dest, "--endpoint-url", endpoint]) == 0
    assert main(["prepare", str(path), str(tmp_path / "d")]) == 0
    there, here = open_dataset(dest), open_dataset(str(tmp_path / "d"))
    assert there.files == here.files and there.rows == 6 and len(there.class_names) == 3
    shown = np.concatenate([read_verified(there, shard)[0] for shard in there.shards])
    assert sorted(image.tobytes() for image in shown) == sorted(image.tobytes() for image in IMAGES)
    assert not uris.exists(uris.join(dest, ".prepare", "plan.json"))
    assert not client.list_multipart_uploads(Bucket="pictures").get("Uploads")
    assert main(["inspect", dest]) == 0


def test_a_source_that_is_not_on_s3_is_named(tmp_path, endpoint, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert main(["prepare", "s3://pictures/nothing.zip", str(tmp_path / "d")]) == 2
    assert "s3://pictures/nothing.zip: no such file or folder" in capsys.readouterr().err
