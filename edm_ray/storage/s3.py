"""S3 with boto3, the one way to it in this package (pyarrow's client has no conditional put and no resumed reads).

Credentials, region and endpoint come from the standard AWS variables and files. Every call is tried again by the one
loop here (botocore's own is off): throttling, server errors, slow and cut connections, with waits that grow and jitter.
An endpoint that has answered before is outlived for ten minutes; one that never did is given up after a few tries.
What another try cannot fix stops at once: no permission, expired credentials, no bucket, no key.
"""

from __future__ import annotations

import io
import logging
import math
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from edm_ray.errors import InputError, IntegrityError

logger = logging.getLogger(__name__)
TRIES, FIRST_WAIT_S, LONGEST_WAIT_S = 8, 0.2, 20.0
FEW = 3
"""Tries of a caller that can do without."""
SAY_S = 60.0
OUTLIVE_S = 600.0
"""How long storage that has answered before may be away."""
PATIENCE = "EDM_RAY_STORAGE_PATIENCE_S"
"""Environment variable: seconds in place of that."""
CONNECT_S, READ_S, FIRST_CONTACT_S = 10.0, 30.0, 5.0
"""How long a connection may take to open, and to bring the next bytes."""
MULTIPART_BYTES = 64 << 20
"""Larger objects are uploaded in parts; what fails is aborted, so no parts stay behind to be paid for."""
PART_BYTES, MOST_PARTS, PART_THREADS = 16 << 20, 10_000, 4
_BLOCK = 1 << 20
_AGAIN = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "InternalError", "ServiceUnavailable"}
_AGAIN |= {"ConditionalRequestConflict", "OperationAborted", "RequestLimitExceeded", "TooManyRequestsException"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "RequestExpired"}
_MISSING = {"NoSuchKey", "404", "NotFound"}
Value = TypeVar("Value")


class NotFound(InputError):
    """There is no such file."""


class StorageError(OSError):
    """Storage did not do it, however often it was asked."""


_guard = threading.Lock()
_impatient: ContextVar[bool] = ContextVar("impatient", default=False)


def outlive_s() -> float:
    """How long storage may be away before what it is asked for fails."""
    return float(os.environ.get(PATIENCE, OUTLIVE_S))


@contextmanager
def impatient() -> Iterator[None]:
    """Meanwhile calls of this thread fail after a few tries: the caller can do without, for now."""
    token = _impatient.set(True)
    try:
        yield
    finally:
        _impatient.reset(token)


def client() -> Any:
    """The process's client for the endpoint and credentials that the environment names now."""
    names: tuple[str, ...] = (
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_PROFILE",
    )
    names += ("AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")
    if (endpoint := _endpoint()) is not None:
        _host_and_port(endpoint)
    with _guard:  # making a client is not thread-safe, using one is
        return _client(os.getpid(), tuple(os.environ.get(name) for name in names))


def check_endpoint(uri: str) -> None:
    """Whether the endpoint that the environment names is a URL at which something listens. Raises InputError, and
    StorageError when nothing does.

    Without one it is AWS, which is not asked: credentials and network may be there only later.
    """
    endpoint = _endpoint()
    if endpoint is None:
        return
    host, port = _host_and_port(endpoint)
    if any(os.environ.get(name) for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")):
        return  # it may be reached by way of the proxy only
    try:
        socket.create_connection((host, port), FIRST_CONTACT_S).close()
    except OSError as error:
        raise StorageError(f"{uri}: nothing answers at endpoint {endpoint} ({error.strerror or error})") from error


def _host_and_port(endpoint: str) -> tuple[str, int]:
    """Raises InputError for what is no URL."""
    address = urlsplit(endpoint)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
    except ValueError:
        port = 0
    if address.scheme not in ("http", "https") or not address.hostname or not port:
        raise InputError(f"endpoint {endpoint!r} is not a URL; give it as http://HOST:PORT or https://HOST")
    return address.hostname, port


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


_answered: set[str | None] = set()
"""Endpoints that have answered this process: only then is it worth to wait for them when they are away."""


@lru_cache(maxsize=8)
def _client(pid: int, settings: tuple[str | None, ...]) -> Any:
    import boto3
    from botocore.config import Config

    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        retries={"total_max_attempts": 1},
        max_pool_connections=64,
        tcp_keepalive=True,
    )
    try:
        return boto3.session.Session(region_name=region).client("s3", config=config)
    except ValueError as error:  # "Invalid endpoint", a profile that is not there
        raise InputError(f"S3: {error}; give an endpoint as http://HOST:PORT or https://HOST") from error


def split(uri: str) -> tuple[str, str]:
    """``s3://bucket/key`` -> (bucket, key)."""
    bucket, _, key = uri.removeprefix("s3://").rstrip("/").partition("/")
    return bucket, key


def read(uri: str, limit: int | None = None) -> bytes:
    """A whole object, as `download`."""
    sink = io.BytesIO()
    download(uri, sink, limit)
    return sink.getvalue()


def download(uri: str, sink: IO[bytes], limit: int | None = None) -> None:
    """A whole object into a file. A cut or slow connection is taken up where it broke, if the object is still the same.

    Raises NotFound, InputError (no permission, no bucket, replaced while it was read), IntegrityError (more than
    ``limit`` bytes), StorageError; what writing to
    ``sink`` raises goes through.
    """
    bucket, key = split(uri)
    got, tag, size = 0, "", -1
    trouble: list[OSError] = []

    def go_on() -> None:
        nonlocal got, tag, size
        more = {"Range": f"bytes={got}-", "IfMatch": tag} if got else {}
        answer = client().get_object(Bucket=bucket, Key=key, **more)
        if not got:
            tag, size = answer["ETag"], answer["ContentLength"]
            if limit is not None and size > limit:
                answer["Body"].close()
                raise IntegrityError(f"{uri}: {size:,} bytes, at most {limit:,} are expected")
        elif answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
            got = 0  # a store that does not know ranges sends all of it again
            sink.seek(0)
        with answer["Body"] as body:
            while block := body.read(_BLOCK):
                try:
                    sink.write(block)
                except OSError as error:
                    trouble.append(error)
                    return
                got += len(block)
        if got != size:
            raise ConnectionError(f"{got:,} of {size:,} bytes arrived")

    _persist(go_on, uri, "s3:GetObject", progress=lambda: got)
    if trouble:
        raise trouble[0]


def size(uri: str) -> int | None:
    """Bytes of an object; None when there is none."""
    bucket, key = split(uri)
    try:
        answer = _persist(lambda: client().head_object(Bucket=bucket, Key=key), uri, "s3:GetObject")
    except NotFound:
        return None
    return int(answer["ContentLength"])


def modified(uri: str) -> tuple[float, float]:
    """(when an object was put, now), in seconds by the store's clock."""
    bucket, key = split(uri)
    answer = _persist(lambda: client().head_object(Bucket=bucket, Key=key), uri, "s3:GetObject")
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    now = time.time() if date is None else parsedate_to_datetime(date).timestamp()
    return answer["LastModified"].timestamp(), now


def write(uri: str, content: bytes, only_new: bool = False) -> bool:
    """Put an object, whole or not at all. only_new: not over another one, even if both are put at the same moment;
    False when there is one."""
    bucket, key = split(uri)
    if len(content) > MULTIPART_BYTES and not only_new:
        _multipart(uri, bucket, key, memoryview(content))
        return True
    condition = {"IfNoneMatch": "*"} if only_new else {}
    try:
        _persist(lambda: client().put_object(Bucket=bucket, Key=key, Body=content, **condition), uri, "s3:PutObject")
    except _Exists:
        return False
    return True


def _multipart(uri: str, bucket: str, key: str, content: memoryview) -> None:
    part_bytes = max(PART_BYTES, -(-len(content) // MOST_PARTS))
    start = _persist(lambda: client().create_multipart_upload(Bucket=bucket, Key=key), uri, "s3:PutObject")
    upload = {"Bucket": bucket, "Key": key, "UploadId": start["UploadId"]}
    stop = threading.Event()

    def put(number: int) -> dict[str, Any]:
        if stop.is_set():
            raise StorageError(f"{uri}: the upload was given up")
        body = bytes(content[(number - 1) * part_bytes : number * part_bytes])
        answer = _persist(
            lambda: client().upload_part(**upload, PartNumber=number, Body=body), uri, "s3:PutObject", stop=stop.is_set
        )
        return {"PartNumber": number, "ETag": answer["ETag"]}

    try:
        numbers = range(1, -(-len(content) // part_bytes) + 1)
        with ThreadPoolExecutor(PART_THREADS, thread_name_prefix="upload") as pool:
            try:
                parts = list(pool.map(put, numbers))
            except BaseException:
                stop.set()
                raise
        done = {"Parts": parts}
        _persist(lambda: client().complete_multipart_upload(**upload, MultipartUpload=done), uri, "s3:PutObject")
    except BaseException:
        try:
            _persist(lambda: client().abort_multipart_upload(**upload), uri, "s3:AbortMultipartUpload", tries=3)
        except NotFound:
            pass
        except (OSError, InputError) as error:
            logger.warning("%s: parts of a failed upload may stay behind (%s)", uri, error)
        raise


def listing(uri: str, deep: bool = False) -> Iterator[tuple[str, int | None]]:
    """(name, bytes) of what lies below a prefix; without ``deep``, directly below: folders have None for bytes."""
    bucket, key = split(uri)
    prefix, token = f"{key}/" if key else "", None
    while True:
        more = {"ContinuationToken": token} if token else {}
        if not deep:
            more["Delimiter"] = "/"
        page = _persist(partial(client().list_objects_v2, Bucket=bucket, Prefix=prefix, **more), uri, "s3:ListBucket")
        for folder in page.get("CommonPrefixes", ()):
            yield folder["Prefix"][len(prefix) : -1], None
        for item in page.get("Contents", ()):
            if (name := item["Key"][len(prefix) :]) and not name.endswith("/"):
                yield name, item["Size"]
        token = page.get("NextContinuationToken")
        if not token:
            return


def is_folder(uri: str) -> bool:
    """Whether anything lies below."""
    bucket, key = split(uri)
    prefix = f"{key}/" if key else ""
    page = _persist(lambda: client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1), uri, "s3:ListBucket")
    return bool(page.get("KeyCount", len(page.get("Contents", ()))))


def delete_below(uri: str) -> None:
    """Delete every object below a prefix; manifests first, so that a half-deleted directory does not exist."""
    assert split(uri)[1], "a whole bucket is never deleted"
    names = [name for name, _ in listing(uri, deep=True)]
    for name in sorted(names, key=lambda name: not name.endswith("manifest.json")):
        delete(f"{uri.rstrip('/')}/{name}")


def abort_uploads(uri: str) -> int:
    """Abort the unfinished multipart uploads below a prefix: parts of a writer that was killed are in no listing, and
    are paid for until then. How many there were."""
    bucket, key = split(uri)
    assert key, "uploads of a whole bucket are other people's too"
    what, count = "s3:ListBucketMultipartUploads", 0
    marker: dict[str, str] = {}
    while True:
        arguments = {"Bucket": bucket, "Prefix": f"{key}/", **marker}
        page = _persist(partial(client().list_multipart_uploads, **arguments), uri, what)
        for upload in page.get("Uploads", ()):
            arguments = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            with suppress(NotFound):  # its writer was alive, and has just ended it
                _persist(partial(client().abort_multipart_upload, **arguments), uri, "s3:AbortMultipartUpload")
                count += 1
        if not page.get("IsTruncated"):
            return count
        marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def delete(uri: str) -> None:
    bucket, key = split(uri)
    _persist(lambda: client().delete_object(Bucket=bucket, Key=key), uri, "s3:DeleteObject")


class _Exists(InputError):
    """A conditional put found an object there."""


def _persist(
    call: Callable[[], Value],
    uri: str,
    permission: str,
    tries: int = TRIES,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[], int] = lambda: 0,
) -> Value:
    """Call until it works. Tries and time count from the last one that brought ``progress``, so long reads may break
    often. What it waits for is said once a minute."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        EndpointConnectionError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
    )
    from urllib3.exceptions import HTTPError

    failed, reached, began, said = 0, 0, time.monotonic(), -math.inf
    few = FEW if _impatient.get() else tries
    patience = outlive_s() if _endpoint() in _answered and tries == TRIES and not _impatient.get() else 0.0
    while True:
        try:
            value = call()
            _answered.add(_endpoint())
            return value
        except EndpointConnectionError as error:
            if _endpoint() not in _answered:
                check_endpoint(uri)  # refuses it in words; where it listens after all, this was a moment's failure
            why: Exception = error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise InputError(
                f"{uri}: no AWS credentials ({error}); set AWS_PROFILE, the AWS_ variables or an instance role"
            ) from error
        except ParamValidationError as error:
            raise InputError(f"{uri}: {' '.join(str(error).split())}") from error
        except ClientError as error:
            _answered.add(_endpoint())
            _stop_at_once(error, uri, permission)
            why = error
        except (BotoCoreError, HTTPError, OSError) as error:
            why = error
        if (now := progress()) > reached:
            failed, reached, began = 0, now, time.monotonic()
        failed += 1
        away = time.monotonic() - began
        if (failed >= few and away >= patience) or stop():
            raise StorageError(f"{uri}: failed {failed} times{f' in {away:.0f} s' if patience else ''}: {why}") from why
        wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(failed - 1, 20)) * random.uniform(0.5, 1.0)
        if time.monotonic() - said > SAY_S:
            said = time.monotonic()
            until = f", for up to {patience - away:.0f} s more" if patience > away else ""
            logger.warning("%s: %s; trying again%s", uri, why, until)
        time.sleep(wait)


def _stop_at_once(error: Any, uri: str, permission: str) -> None:
    """Raise what another try cannot fix; return for what it may."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    bucket = split(uri)[0]
    if code == "NotImplemented" or status == 501:
        raise InputError(
            f"{uri}: this store does not know what was asked of it ({error}); use one that does"
        ) from error
    if code in _AGAIN or status >= 500 or status == 429:
        return
    if code == "NoSuchBucket":
        raise InputError(f"{uri}: there is no bucket {bucket!r} (at this endpoint)") from error
    if code == "NoSuchUpload":
        raise NotFound(f"{uri}: its upload was aborted by another process; run the same command again") from error
    if code in _MISSING or status == 404:
        raise NotFound(f"{uri}: no such file") from error
    if code in _EXPIRED:
        raise InputError(
            f"{uri}: the credentials have expired ({code}); renew them (aws sso login, a new session token, or a "
            "role that renews itself), and run the same command again"
        ) from error
    if status == 412 and permission == "s3:PutObject":
        raise _Exists(uri) from error
    if status == 412:
        raise InputError(f"{uri}: was replaced while it was read; run the same command again") from error
    if status in (401, 403):
        arn = f"arn:aws:s3:::{bucket}"
        key = "" if permission.startswith("s3:ListBucket") else f"/{split(uri)[1]}"
        hint = "" if permission != "s3:GetObject" else f" (or s3:ListBucket on {arn}, if the key is not there)"
        raise InputError(
            f"{uri}: access denied ({code}): the credentials lack {permission} on {arn}{key}{hint}; not tried again"
        ) from error
    raise InputError(f"{uri}: S3 refused: {error}") from error
