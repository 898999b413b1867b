"""Files from the web: TLS only, nothing secret in messages, one line for whatever goes wrong."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO

from edm_ray.errors import InputError

TIMEOUT_S = 60.0
SCHEMES = ("https",)


class WebError(InputError):
    """A file that the web did not give. ``passing``: trying again may help (the connection broke, the server is
    busy); otherwise it will not (no such file, no network). ``code``: the server's answer, where there was one."""

    def __init__(self, message: str, passing: bool = False, code: int | None = None) -> None:
        super().__init__(message)
        self.passing, self.code = passing, code


def public(url: str) -> str:
    """The address without what may be secret: a user name, a query."""
    if "://" not in url or url.startswith("s3://"):
        return url
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def check_url(url: str) -> None:
    """Raises InputError for an address that is not TLS, or has credentials in it."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise InputError(
            f"{public(url)}: scheme {parts.scheme!r} is not supported; give a local path, s3://bucket/key or https://..."
        )
    if "@" in parts.netloc:
        raise InputError(f"{public(url)}: a URL with credentials in it is refused; download the file and give its path")


class SameSchemes(urllib.request.HTTPRedirectHandler):
    """Redirects may not leave TLS."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def opened(url: str, headers: Mapping[str, str] = {}, timeout: float = TIMEOUT_S) -> Iterator[http.client.HTTPResponse]:
    """An open response; certificates are checked. Raises WebError for what the server or the network refuses, and
    InputError as `check_url` does."""
    check_url(url)
    name = public(url)
    asked = urllib.request.Request(url, headers={"User-Agent": "edm-ray", **headers})
    try:
        response = urllib.request.build_opener(SameSchemes()).open(asked, timeout=timeout)
    except urllib.error.HTTPError as error:
        busy = error.code >= 500 or error.code == 429
        raise WebError(f"{name}: the server answered {error.code} {error.reason}", busy, error.code) from None
    except urllib.error.URLError as error:
        raise WebError(f"{name}: could not be read: {_why(error.reason)}") from None
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise WebError(f"{name}: could not be read: {_why(error)}", passing=True) from None
    with response:
        yield response


def blocks(response: http.client.HTTPResponse, url: str, most: int = 1 << 18) -> Iterator[bytes]:
    """What comes, as it comes, in blocks of at most ``most`` bytes. Raises WebError when the connection breaks; one
    that just ends early is seen by the length alone."""
    while True:
        try:
            block = response.read1(most)
        except (OSError, http.client.HTTPException) as error:
            raise WebError(f"{public(url)}: could not be read: {_why(error)}", passing=True) from None
        if not block:
            return
        yield block


def stated_length(response: http.client.HTTPResponse) -> int | None:
    """Bytes that the server says will come."""
    length = response.headers.get("Content-Length")
    return int(length) if length is not None and length.isdigit() else None


def _why(error: object) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text)
