"""An S3 server on loopback, and a proxy before it that breaks what it is told to break."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@dataclass
class Faults:
    """What the proxy does to the next requests that ``where`` picks; afterwards all is well again."""

    where: Callable[[str, str], bool] = lambda method, path: True
    """(method, path with query)"""
    busy: int = 0
    """So many answers of 503 SlowDown."""
    denied: int = 0
    """So many answers of 403 AccessDenied."""
    cut: int = 0
    """So many answers end after half of their bytes."""
    silent_s: float = 0.0
    """The next answer stops for so long in the middle of its bytes."""
    muted_s: float = 0.0
    """The next request is carried out and not answered for so long."""
    dropped: int = 0
    """So many requests are carried out, and their connections closed without an answer."""
    before: Callable[[], None] | None = None
    """Called once, before the second request that is picked."""
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, Range header) of all requests."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Connections break here on purpose."""


@contextmanager
def proxied(endpoint: str) -> Iterator[tuple[str, Faults]]:
    """(endpoint of the proxy, faults to set)."""
    faults, behind, guard = Faults(), urlsplit(endpoint), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else content)

        def _serve(self) -> None:
            body = self._body()
            with guard:
                picked = faults.where(self.command, self.path)
                again = picked and any(faults.where(m, p) for m, p, _ in faults.seen)
                faults.seen.append((self.command, self.path, self.headers.get("Range", "")))
                if again and faults.before is not None:
                    faults.before()
                    faults.before = None
                if picked and faults.busy:
                    faults.busy -= 1
                    return self._answer(503, BUSY)
                if picked and faults.denied:
                    faults.denied -= 1
                    return self._answer(403, DENIED)
            connection = http.client.HTTPConnection(behind.hostname or "", behind.port, timeout=30)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
            headers["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            with guard:
                dropped, muted_s = picked and faults.dropped > 0, faults.muted_s if picked else 0.0
                faults.dropped -= dropped
                faults.muted_s -= muted_s
            if dropped or muted_s:
                time.sleep(muted_s)
                self.close_connection = True
                return None
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            if answer.getheader("Content-Length") is None:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with guard:
                cut, silent_s = picked and faults.cut > 0, faults.silent_s if picked else 0.0
                faults.cut -= cut
                faults.silent_s -= silent_s
            half = len(content) // 2
            self.wfile.write(content[:half])
            self.wfile.flush()
            if cut:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return None
            if silent_s:
                time.sleep(silent_s)
            self.wfile.write(content[half:])
            return None

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", faults
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def s3_server(bucket: str = "bucket") -> Iterator[str]:
    """moto on loopback with this bucket, and the AWS variables set for it. Yields the endpoint."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=bucket)
        try:
            yield f"http://{host}:{port}"
        finally:
            server.stop()
