"""A file of known hash is there whole or not at all, whatever the network does."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage import download as module
from edm_ray.storage import web
from edm_ray.storage.download import download
from tests.storage.loopback import FileServer, serving

CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(web, "SCHEMES", ("https", "http"))  # TLS is what the server here lacks
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    with serving(CONTENT) as running:
        yield running


def fetch(server: FileServer, folder: Path, on_bytes=module.no_bytes) -> Path:
    target = folder / "cache" / "weights.pth"
    download(f"{server.address}/weights.pth", target, SHA256, len(CONTENT), on_bytes)
    return target


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "cache").iterdir() if not path.name.startswith("."))


def test_a_file_is_fetched_once_and_progress_ends_at_all_of_it(server, tmp_path):
    told: list[tuple[int, int]] = []
    target = fetch(server, tmp_path, lambda done, total: told.append((done, total)))
    assert target.read_bytes() == CONTENT and visible(tmp_path) == ["weights.pth"]
    assert told[-1] == (len(CONTENT), len(CONTENT)) and [done for done, _ in told] == sorted(done for done, _ in told)
    fetch(server, tmp_path)
    assert len(server.asked) == 1


def test_a_slow_server_is_waited_for_and_its_progress_is_told_as_it_comes(server, tmp_path):
    server.faults = ["slow"]
    told: list[int] = []
    assert fetch(server, tmp_path, lambda done, total: told.append(done)).read_bytes() == CONTENT
    assert len(told) >= 6


@pytest.mark.parametrize("faults", [["cut"], ["cut", "cut", "cut"], ["503", "cut"], ["cut", "no ranges"]])
def test_a_connection_that_breaks_is_taken_up_again(server, tmp_path, faults):
    server.faults = list(faults)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == len(faults) + (faults[-1] != "no ranges")
    assert server.asked[-1] == f"bytes={len(CONTENT) - len(CONTENT) // 2 ** faults.count('cut')}-"


def test_a_server_that_falls_silent_has_broken_off(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STALL_S", 0.2)
    server.faults = ["stall"]
    assert fetch(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("faults", "says", "left"),
    [
        (["cut"] * 9, "the same command resumes", True),
        (["503"] * 9, "the server answered 503", False),
        (["404"], "the server answered 404", False),
        (["portal"], "the server has 25 bytes, expected 512,000: not the published file", False),
        (["other"], "sha256 is .*, expected .*: not the published file", False),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line_and_nothing_half_written_has_the_name(
    server, tmp_path, faults, says, left
):
    server.faults = list(faults)
    with pytest.raises(InputError, match=says) as caught:
        fetch(server, tmp_path)
    assert "\n" not in str(caught.value) and visible(tmp_path) == []
    assert (tmp_path / "cache" / ".weights.pth.part").exists() is left
    server.faults = []
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert (server.asked[-1] != "") is left, "the next call resumes what an earlier one has got"


def test_a_refusal_is_not_asked_again(server, tmp_path):
    server.faults = ["404", "404"]
    with pytest.raises(InputError):
        fetch(server, tmp_path)
    assert len(server.asked) == 1


def test_no_network_is_said_in_one_line(server, tmp_path):
    for url, says in (("http://127.0.0.1:1/x", "Connection refused"), ("http://host.invalid/x", "could not be read")):
        with pytest.raises(InputError, match=says) as caught:
            download(url, tmp_path / "cache" / "x", SHA256, 9)
        assert "\n" not in str(caught.value) and visible(tmp_path) == []


@pytest.mark.parametrize("size", [1000, len(CONTENT), len(CONTENT) + 5])
def test_what_lies_half_written_of_another_file_is_not_built_upon(server, tmp_path, size):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".weights.pth.part").write_bytes(b"?" * size)
    assert fetch(server, tmp_path).read_bytes() == CONTENT and visible(tmp_path) == ["weights.pth"]


def test_a_range_that_the_server_refuses_is_dropped(server, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".weights.pth.part").write_bytes(CONTENT[:1000])
    server.faults = ["416"]
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_damaged_file_with_the_name_is_replaced(server, tmp_path):
    target = fetch(server, tmp_path)
    target.write_bytes(CONTENT[:-1] + b"?")
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_server_that_states_no_length_and_sends_more_is_cut_off_and_checked(server, tmp_path):
    server.faults, server.content = ["unsized"], CONTENT + b"more"
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    server.faults, server.content = ["unsized"] * 9, b"?" * (len(CONTENT) + 4)
    (tmp_path / "cache" / "weights.pth").unlink()
    with pytest.raises(IntegrityError, match="not the published file"):
        fetch(server, tmp_path)
    assert visible(tmp_path) == []


def test_of_two_that_want_the_file_one_fetches_it(server, tmp_path):
    server.faults = ["slow"]
    threads = [threading.Thread(target=fetch, args=(server, tmp_path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1 and visible(tmp_path) == ["weights.pth"]


def test_an_address_without_tls_is_refused(tmp_path):
    with pytest.raises(InputError, match="scheme 'http' is not supported"):
        download("http://127.0.0.1:1/x", tmp_path / "x", SHA256, 9)
