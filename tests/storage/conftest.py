"""An S3 server for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.storage.proxies import s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint
