from __future__ import annotations

import json

import pytest

from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage import uris
from edm_ray.storage.commit import commit, read_file, read_manifest, write_files
from tests.storage.proxies import s3_server


def test_a_directory_without_its_manifest_does_not_exist(tmp_path):
    write_files(str(tmp_path / "x"), [("a", b"1")])
    assert read_manifest(str(tmp_path / "x")) is None


def test_what_is_committed_is_read_back_with_its_facts(tmp_path):
    uri = str(tmp_path / "x")
    commit(uri, [("a", b"hello"), ("b/c", b"")], kind="test", rows=3)
    manifest = read_manifest(uri)
    assert (manifest["kind"], manifest["rows"]) == ("test", 3)
    assert read_file(uri, "a", manifest) == b"hello" and read_file(uri, "b/c", manifest) == b""


@pytest.mark.parametrize(("content", "says"), [(b"hell", "truncated"), (b"jello", "sha256")])
def test_a_changed_file_is_refused_and_named(tmp_path, content, says):
    uri = str(tmp_path / "x")
    manifest = commit(uri, [("a", b"hello")])
    (tmp_path / "x" / "a").write_bytes(content)
    with pytest.raises(IntegrityError, match=says) as error:
        read_file(uri, "a", manifest)
    assert str(tmp_path / "x" / "a") in str(error.value)


def test_a_damaged_manifest_is_refused(tmp_path):
    uri = str(tmp_path / "x")
    commit(uri, [("a", b"hello")])
    path = tmp_path / "x" / "manifest.json"
    path.write_text(path.read_text()[:-5])
    with pytest.raises(IntegrityError, match="not JSON"):
        read_manifest(uri)
    path.write_text(json.dumps({"rows": 1}))
    with pytest.raises(IntegrityError, match="files"):
        read_manifest(uri)


def test_a_failed_write_leaves_the_old_bytes_and_no_part(tmp_path, monkeypatch):
    target = tmp_path / "f"
    uris.write_bytes(str(target), b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        uris.write_bytes(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize(
    ("uri", "says"),
    [("gs://b/x", "scheme 'gs'"), ("s3://key:secret@b/x", "credentials"), ("s3:///", "bucket is missing")],
)
def test_uris_that_cannot_work_are_refused_without_repeating_secrets(uri, says):
    with pytest.raises(InputError, match=says) as error:
        uris.resolve(uri)
    assert "secret" not in str(error.value)


def test_commit_and_read_work_over_the_s3_protocol():
    """A real S3 protocol over HTTP on loopback."""
    with s3_server():
        uri = "s3://bucket/some/run"
        assert read_manifest(uri) is None and uris.list_names(uri) == []
        commit(uri, [("a.bin", b"x" * 1000)], rows=1)
        assert read_file(uri, "a.bin", read_manifest(uri)) == b"x" * 1000
        assert uris.list_names(uri) == ["a.bin", "manifest.json"]
        uris.delete_directory(uri)
        assert read_manifest(uri) is None


def test_a_file_is_no_directory_with_a_manifest(tmp_path):
    (tmp_path / "network.pkl").write_bytes(b"x")
    assert read_manifest(str(tmp_path / "network.pkl")) is None
