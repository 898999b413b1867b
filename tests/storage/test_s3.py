"""S3 over HTTP on loopback, with faults injected between client and server."""

from __future__ import annotations

import io
import threading
import time

import boto3
import pytest

from edm_ray.errors import InputError
from edm_ray.storage import s3, uris
from edm_ray.storage.commit import commit, read_file, read_manifest
from edm_ray.storage.uris import NotFound, StorageError
from tests.storage.proxies import proxied

BIG = bytes(range(256)) * 4096 * 3  # 3 MiB


@pytest.fixture
def faults(server, monkeypatch):
    """The way to S3 leads through the proxy; waits are short."""
    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0.01)
    with proxied(server) as (endpoint, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield faults


def direct(server):
    return boto3.client("s3", endpoint_url=server)


def gets(faults):
    return [rest for method, path, rest in faults.seen if method == "GET"]


def test_throttling_is_waited_out(faults):
    for operation in (
        lambda: uris.write_bytes("s3://bucket/busy", b"x"),
        lambda: uris.create_bytes(f"s3://bucket/new-{time.monotonic_ns()}", b"x"),
        lambda: uris.read_bytes("s3://bucket/busy"),
        lambda: uris.list_names("s3://bucket"),
        lambda: uris.exists("s3://bucket/busy"),
        lambda: uris.delete_directory("s3://bucket/nothing"),
    ):
        faults.busy, before = 2, len(faults.seen)
        operation()
        assert faults.busy == 0 and len(faults.seen) - before >= 3


def test_waits_grow_and_jitter_and_end(faults, monkeypatch):
    waits = []
    monkeypatch.setattr(s3.time, "sleep", waits.append)
    faults.busy = 1000
    with pytest.raises(StorageError, match=r"s3://bucket/x: failed 8 times: .*SlowDown"):
        uris.read_bytes("s3://bucket/x")
    assert len(faults.seen) == 8 and len(waits) == 7
    assert all(0.5 * 0.01 * 2**i <= wait <= 0.01 * 2**i for i, wait in enumerate(waits))
    assert len({wait / 2**i for i, wait in enumerate(waits)}) == 7


@pytest.mark.parametrize(
    ("operation", "permission"),
    [
        (
            lambda: uris.read_bytes("s3://bucket/secret"),
            "s3:GetObject on arn:aws:s3:::bucket/secret .or s3:ListBucket on arn:aws:s3:::bucket,",
        ),
        (
            lambda: uris.exists("s3://bucket/secret"),
            "s3:GetObject on arn:aws:s3:::bucket/secret .or s3:ListBucket on arn:aws:s3:::bucket,",
        ),
        (lambda: uris.write_bytes("s3://bucket/secret", b"x"), "s3:PutObject on arn:aws:s3:::bucket/secret;"),
        (lambda: uris.list_names("s3://bucket/secret"), "s3:ListBucket on arn:aws:s3:::bucket;"),
    ],
)
def test_without_permission_it_stops_at_once_and_says_which_is_missing(faults, operation, permission):
    faults.denied = 1
    with pytest.raises(InputError, match=rf"s3://bucket/secret: access denied.*{permission}"):
        operation()
    assert len(faults.seen) == 1


def test_a_read_resumes_where_its_connection_broke(faults, server):
    direct(server).put_object(Bucket="bucket", Key="big", Body=BIG)
    faults.cut = 3
    assert uris.read_bytes("s3://bucket/big") == BIG
    ranges = gets(faults)
    starts = [int(r.removeprefix("bytes=").removesuffix("-") or 0) for r in ranges]
    assert len(starts) == 4 and starts[0] == 0 and starts == sorted(set(starts))


def test_a_silent_connection_is_closed_and_the_read_resumes(faults, server, monkeypatch):
    direct(server).put_object(Bucket="bucket", Key="big", Body=BIG)
    monkeypatch.setattr(s3, "READ_S", 0.3)
    s3._client.cache_clear()
    faults.silent_s = 60.0
    began = time.monotonic()
    try:
        assert uris.read_bytes("s3://bucket/big") == BIG
    finally:
        s3._client.cache_clear()
    assert time.monotonic() - began < 30 and len(gets(faults)) == 2


def test_an_object_replaced_between_two_ranges_is_not_pieced_together(faults, server):
    client = direct(server)
    client.put_object(Bucket="bucket", Key="big", Body=BIG)
    faults.cut = 1
    faults.before = lambda: client.put_object(Bucket="bucket", Key="big", Body=BIG[::-1])
    with pytest.raises(InputError, match=r"s3://bucket/big: was replaced while it was read"):
        uris.read_bytes("s3://bucket/big")


def test_nobody_there_is_an_error_and_not_a_hang(monkeypatch, server):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0.001)
    with pytest.raises(StorageError, match=r"s3://bucket/x: nothing answers at endpoint .*127\.0\.0\.1:9"):
        uris.read_bytes("s3://bucket/x")


def test_an_error_of_the_local_disk_is_not_tried_again(faults, server):
    direct(server).put_object(Bucket="bucket", Key="big", Body=BIG)

    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        uris.download("s3://bucket/big", Full())
    assert len(faults.seen) == 1


def test_a_store_without_conditional_puts_is_refused_at_once(monkeypatch):
    from botocore.exceptions import ClientError

    asked = []

    class Old:
        def put_object(self, **arguments):
            asked.append(arguments["IfNoneMatch"])
            about = {"Error": {"Code": "NotImplemented", "Message": "A header implies something that is not here"}}
            raise ClientError({**about, "ResponseMetadata": {"HTTPStatusCode": 501}}, "PutObject")

    monkeypatch.setattr(s3, "client", Old)
    with pytest.raises(InputError, match=r"s3://bucket/manifest\.json: this store does not know"):
        uris.create_bytes("s3://bucket/manifest.json", b"{}")
    assert asked == ["*"]


def test_missing_keys_and_buckets_are_told_apart(server):
    with pytest.raises(NotFound, match="s3://bucket/nothing: no such file"):
        uris.read_bytes("s3://bucket/nothing")
    with pytest.raises(InputError, match="there is no bucket 'nowhere'"):
        uris.read_bytes("s3://nowhere/x")
    with pytest.raises(InputError, match="there is no bucket 'nowhere'"):
        uris.list_names("s3://nowhere/x")
    assert not uris.exists("s3://bucket/nothing")


def test_folders_are_listed_page_by_page_and_deleted_whole(server, monkeypatch):
    monkeypatch.setattr(s3, "client", lambda real=s3.client: _Paged(real()))
    for name in ("a", "b/c", "b/d", ".hidden", "e/f/g"):
        uris.write_bytes(f"s3://bucket/tree/{name}", name.encode())
    uris.write_bytes("s3://bucket/tree-of-another", b"stays")
    assert uris.list_names("s3://bucket/tree") == ["a", "b", "e"]
    assert sorted(uris.list_tree("s3://bucket/tree/")) == [
        (".hidden", 7),
        ("a", 1),
        ("b/c", 3),
        ("b/d", 3),
        ("e/f/g", 5),
    ]
    assert uris.exists("s3://bucket/tree/b") and uris.is_folder("s3://bucket/tree/b")
    assert not uris.is_folder("s3://bucket/tree/a") and not uris.exists("s3://bucket/tre")
    assert uris.file_size("s3://bucket/tree/b/c") == 3 and uris.file_size("s3://bucket/tree/b") is None
    uris.delete_directory("s3://bucket/tree")
    assert not uris.exists("s3://bucket/tree") and uris.read_bytes("s3://bucket/tree-of-another") == b"stays"


class _Paged:
    """A client that lists two keys a page."""

    def __init__(self, client):
        self.client = client

    def __getattr__(self, name):
        return getattr(self.client, name)

    def list_objects_v2(self, **arguments):
        return self.client.list_objects_v2(**{"MaxKeys": 2, **arguments})


@pytest.fixture
def in_parts(monkeypatch):
    monkeypatch.setattr(s3, "MULTIPART_BYTES", 6 << 20)
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    return BIG * 4  # 12 MiB, three parts


def uploads(server):
    return direct(server).list_multipart_uploads(Bucket="bucket").get("Uploads", [])


def test_a_large_object_goes_up_in_parts(faults, server, in_parts):
    faults.where, faults.busy = lambda method, path: "partNumber=2" in path, 2
    uris.write_bytes("s3://bucket/large", in_parts)
    assert uris.read_bytes("s3://bucket/large") == in_parts and uploads(server) == []
    assert sum("partNumber=" in path for _, path, _ in faults.seen) == 5


@pytest.mark.parametrize("fails", ["partNumber=3", "uploadId="])
def test_an_upload_that_fails_is_aborted_and_leaves_what_was_there(faults, server, in_parts, fails):
    uris.write_bytes("s3://bucket/large", b"old")
    faults.where = lambda method, path: fails in path and method == ("PUT" if "part" in fails else "POST")
    faults.denied = 1
    with pytest.raises(InputError, match="s3:PutObject"):
        uris.write_bytes("s3://bucket/large", in_parts)
    assert uploads(server) == [] and uris.read_bytes("s3://bucket/large") == b"old"


def _begin_upload(server, key):
    """What a writer leaves that was killed within a multipart upload."""
    client = direct(server)
    upload = client.create_multipart_upload(Bucket="bucket", Key=key)["UploadId"]
    client.upload_part(Bucket="bucket", Key=key, UploadId=upload, PartNumber=1, Body=b"x")
    return upload


def test_unfinished_uploads_of_dead_writers_are_aborted_below_the_place_and_nowhere_else(faults, server):
    for key in ("set/a", "set/b/c", "set-of-another/a"):
        _begin_upload(server, key)
    faults.busy = 1
    uris.clear_unfinished("s3://bucket/set")
    assert [upload["Key"] for upload in uploads(server)] == ["set-of-another/a"]
    uris.delete_directory("s3://bucket/set-of-another")
    assert uploads(server) == []


def test_without_permission_to_list_uploads_a_warning_is_logged_and_work_continues(faults, caplog):
    faults.denied = 1
    uris.clear_unfinished("s3://bucket/set")
    assert "s3:ListBucketMultipartUploads on arn:aws:s3:::bucket;" in caplog.text


def test_a_writer_whose_upload_was_aborted_by_another_says_so(monkeypatch, in_parts, caplog):
    """With a client of our own: the S3 stand-in answers 500 where S3 answers NoSuchUpload."""
    from botocore.exceptions import ClientError

    class Aborted:
        def create_multipart_upload(self, **_):
            return {"UploadId": "gone"}

        def upload_part(self, **_):
            about = {"Error": {"Code": "NoSuchUpload"}, "ResponseMetadata": {"HTTPStatusCode": 404}}
            raise ClientError(about, "UploadPart")

        abort_multipart_upload = upload_part

    monkeypatch.setattr(s3, "client", Aborted)
    with pytest.raises(InputError, match=r"s3://bucket/large: its upload was aborted by another process"):
        uris.write_bytes("s3://bucket/large", in_parts)
    assert "stay behind" not in caplog.text


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """A directory to commit into, in both kinds of storage."""
    if request.param == "local":
        return str(tmp_path / "x")
    request.getfixturevalue("server")
    return f"s3://bucket/{request.node.name.replace('[', '-').replace(']', '')}"


def test_of_two_writers_one_wins_and_the_other_is_told(place):
    commit(place, [("a", b"one")], rows=1)
    with pytest.raises(InputError, match=r"manifest\.json: other content is committed there already \(a differs\)"):
        commit(place, [("a", b"two")], rows=1)
    with pytest.raises(InputError, match=r"\(rows differs\)"):
        commit(place, [("a", b"one")], rows=2)
    manifest = read_manifest(place)
    assert manifest["rows"] == 1 and read_file(place, "a", manifest) == b"one"


def test_of_many_writers_at_the_same_moment_one_wins(tmp_path):
    """Local only: the S3 stand-in does not promise that its conditional put is atomic; S3 does."""
    place = str(tmp_path / "x")
    results, barrier = [], threading.Barrier(6)

    def write(number):
        barrier.wait()
        try:
            commit(place, [], number=number)
            results.append(number)
        except InputError as error:
            assert "committed there already" in str(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [read_manifest(place)["number"]]


def test_the_same_content_may_be_committed_again_and_repairs_a_file(place):
    commit(place, [("a", b"one")], rows=1)
    uris.write_bytes(uris.join(place, "a"), b"damaged")
    commit(place, [("a", b"one")], rows=1)
    assert read_file(place, "a", read_manifest(place)) == b"one"


def test_what_is_meant_to_be_replaced_is(place):
    commit(place, [("a", b"one")], rows=1)
    commit(place, [("a", b"two")], replace=True, rows=2)
    assert read_file(place, "a", read_manifest(place)) == b"two"
    for content in (b"{}", b"[]"):
        uris.write_bytes(uris.join(place, "run.json"), content)
        assert uris.read_bytes(uris.join(place, "run.json")) == content


def test_a_damaged_manifest_commits_nothing_and_is_overwritten(place):
    uris.write_bytes(uris.join(place, "manifest.json"), b'{"fil')
    commit(place, [("a", b"one")], rows=1)
    assert read_manifest(place)["rows"] == 1


def test_where_links_are_not_possible_a_file_is_still_created_once(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(uris.os, "link", no_links)
    assert uris.create_bytes(str(tmp_path / "f"), b"1") and not uris.create_bytes(str(tmp_path / "f"), b"2")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f", b"1")]
