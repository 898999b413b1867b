"""A server on loopback that offers one file, and has the faults that real ones have."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """``faults``: what happens to the next requests, one each; then all goes well. `whole`, `cut` (half of what is
    left, then the connection closes), `no ranges`, `stall` (half, then silence), `slow` (in pieces), `503`, `404`,
    `416`, `portal` (a page of another length), `other` (other bytes), `unsized`."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        self.content, self.faults = content, list[str]()
        self.asked: list[str] = []
        """The Range of each request, "" without one."""
        self.stop = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server, content = self.server, self.server.content
        fault = server.faults.pop(0) if server.faults else "whole"
        asked = self.headers.get("Range", "")
        server.asked.append(asked)
        if fault in ("503", "404", "416"):
            self.send_error(int(fault))
            return
        if fault in ("portal", "other"):
            content = b"<html>log in first</html>" if fault == "portal" else bytes(len(content))
        first = int(re.findall(r"\d+", asked)[0]) if asked and fault != "no ranges" else 0
        self.send_response(206 if first else 200)
        if fault != "unsized":
            self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        rest = content[first:]
        if fault == "slow":
            for start in range(0, len(rest), len(rest) // 8):
                self.wfile.write(rest[start : start + len(rest) // 8])
                time.sleep(0.02)
        elif fault in ("cut", "stall"):
            self.wfile.write(rest[: len(rest) // 2])
            self.wfile.flush()
            if fault == "stall":
                server.stop.wait(20)
        else:
            self.wfile.write(rest)

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def serving(content: bytes) -> Iterator[FileServer]:
    server = FileServer(content)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        server.server_close()
