"""Files from URLs: TLS only, capped, complete, no secrets in messages. A loopback server is the network."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from edm_ray.errors import InputError, IntegrityError
from edm_ray.models.interop.source import fetch
from edm_ray.storage import web

BODY = bytes(range(256)) * 1000


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/away":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/x.pkl")
            self.end_headers()
        elif path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a/net.pkl")
            self.end_headers()
        elif path == "/a/net.pkl" or path in ("/short", "/unsized"):
            self.send_response(200)
            if path != "/unsized":
                self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY[: 1000 if path == "/short" else None])
        else:
            self.send_error(404)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(web, "SCHEMES", ("https", "http"))  # TLS is what the server here lacks
    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def test_a_url_is_streamed_and_hashed(server: str) -> None:
    digest = hashlib.sha256(BODY).hexdigest()
    for path in ("/a/net.pkl", "/a/net.pkl?token=secret", "/moved"):
        file = fetch(server + path, sha256=digest)
        assert file.content == BODY and file.sha256 == digest and "secret" not in file.name
    assert fetch(f"{server}/a/net.pkl").name == "net.pkl"
    with pytest.raises(IntegrityError, match=r"a/net\.pkl: sha256 is") as caught:
        fetch(f"{server}/a/net.pkl?token=secret", sha256="0" * 64)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["/a/net.pkl", "/unsized"])
def test_a_download_stops_at_the_limit_whether_the_size_is_stated_or_not(server: str, path: str) -> None:
    with pytest.raises(InputError, match="bytes, allowed are 1,000"):
        fetch(server + path, max_bytes=1000)


def test_a_download_that_breaks_off_is_refused(server: str) -> None:
    with pytest.raises(InputError, match=r"1,000 of 256,000 bytes arrived|could not be read"):
        fetch(f"{server}/short")


def test_a_server_that_has_no_such_file_or_is_not_there_is_named(server: str) -> None:
    with pytest.raises(InputError, match=r"nothing: the server answered 404"):
        fetch(f"{server}/nothing")
    with pytest.raises(InputError, match="could not be read"):
        fetch("http://127.0.0.1:1/x")


def test_a_redirect_may_not_leave_tls(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="scheme 'ftp' is not supported"):
        fetch(f"{server}/away")
    handler = web.SameSchemes()
    monkeypatch.setattr(web, "SCHEMES", ("https",))
    with pytest.raises(InputError, match="scheme 'http' is not supported"):
        handler.redirect_request(None, None, 302, "", None, "http://127.0.0.1/x")  # type: ignore[arg-type]


def test_a_local_file_is_capped_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    with path.open("wb") as out:
        out.truncate(2**40)  # sparse
    with pytest.raises(InputError, match="1,099,511,627,776 bytes, allowed are"):
        fetch(str(path))
    with pytest.raises(InputError, match="no such file"):
        fetch(str(tmp_path))


def test_an_s3_file_is_capped_before_it_is_read(bucket: str) -> None:
    from edm_ray.storage import uris

    uris.write_bytes(f"{bucket}/a.pkl", b"x" * 2000)
    assert fetch(f"{bucket}/a.pkl").content == b"x" * 2000
    with pytest.raises(InputError, match="2,000 bytes, allowed are 1,000"):
        fetch(f"{bucket}/a.pkl", max_bytes=1000)
