from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.storage.proxies import s3_server


@pytest.fixture
def bucket() -> Iterator[str]:
    """An S3 bucket over HTTP on loopback."""
    with s3_server("models"):
        yield "s3://models"
