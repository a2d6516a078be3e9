"""A store of files under one URI: a folder, or a bucket that speaks S3."""

import errno
import functools
import hashlib
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from pipeline.errors import UserError
from pipeline.patience import Pauses

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BLOCK = 2**20  # bytes that are in memory at a time when a file passes through
BUSY = ("SlowDown", "RequestTimeout", "Throttling", "429")  # answers below 500 that another try mends
CONFLICT_SECONDS = 4  # for which a write of a name that others are writing is tried


class UnavailableError(UserError):
    """The store did not answer, or broke off its answer: another try may succeed."""


class DeniedError(UserError):
    """The credentials are known, and lack the permission."""


class Entry(NamedTuple):
    """One file of a store: its name, bytes, and when it was written, in seconds since 1970.

    etag: what a bucket says of the contents. It is their MD5 in hex for one that was sent in one part to a server without
    keys of its own, and anything else otherwise. Empty in a folder.
    """

    name: str
    size: int
    modified: int
    etag: str = ""


class Storage(ABC):
    """Files by name below `uri`; a name is a relative path with forward slashes.

    A name holds a whole file or none, even if a writer is killed. An error that the user can mend raises UserError in one
    line: an absent bucket, refused or missing credentials, an endpoint that does not answer.
    """

    uri: str  # without a trailing slash

    @abstractmethod
    def chunks(self, name: str, start: int = 0, *, once: bool = False) -> Iterator[bytes]:
        """The contents from byte `start` on, block by block. start: less than the length.

        once: without boto3's own retries, and with less patience for a silent server, for a caller that tries again by
        itself. Raises FileNotFoundError, and UnavailableError where another try may succeed.
        """

    @abstractmethod
    def names(self, prefix: str = "") -> list[str]:
        """All names that begin with `prefix`, sorted; hidden files of a folder are left out."""

    @abstractmethod
    def entries(self, prefix: str = "") -> list[Entry]:
        """What `names` lists, with size and time."""

    @abstractmethod
    def write(self, name: str, data: bytes | Path) -> None:
        """Write or replace, with bytes or the contents of a local file."""

    @abstractmethod
    def write_new(self, name: str, data: bytes | Path) -> None:
        """Write bytes, or the contents of a local file, under a name that nobody has written.

        One of several simultaneous writers succeeds. Raises FileExistsError for the others, and for a writer that lost the
        answer on the way, so compare before calling it a conflict.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove one file, if it is there; a folder that it leaves empty goes with it."""

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The contents. Raises as `download`."""
        return b"".join(self._limited(name, limit))

    def sha256(self, name: str) -> str:
        """The sha256 of the contents, in hex, without holding them in memory. Raises FileNotFoundError."""
        digest = hashlib.sha256()
        for chunk in self.chunks(name):
            digest.update(chunk)
        return digest.hexdigest()

    def download(self, name: str, path: Path, limit: int | None = None) -> None:
        """Copy into a local file, which appears whole.

        limit: bytes; None: any number. Raises FileNotFoundError, and UserError for a file of more bytes than that.
        """
        with _written(path, self._limited(name, limit)) as temporary:
            temporary.replace(path)

    def _limited(self, name: str, limit: int | None) -> Iterator[bytes]:
        with closing(self.chunks(name)) as chunks:  # type: ignore[type-var]
            left = math.inf if limit is None else limit
            for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    raise UserError(f"{self.uri}/{name}: longer than the {limit:,} bytes that it should have")
                yield chunk


class Folder(Storage):
    """A folder on this machine, local or mounted."""

    def __init__(self, uri: str, root: Path) -> None:
        self.uri, self.root = uri, root

    def chunks(self, name: str, start: int = 0, *, once: bool = False) -> Iterator[bytes]:
        return _blocks(self.root / name, start)

    def names(self, prefix: str = "") -> list[str]:
        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        found = []
        for folder, folders, files in os.walk(self.root / prefix.rpartition("/")[0], onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [Path(folder, name).relative_to(self.root).as_posix() for name in files if name[0] != "."]
        return sorted(name for name in found if name.startswith(prefix))

    def entries(self, prefix: str = "") -> list[Entry]:
        found = []
        for name in self.names(prefix):
            with suppress(FileNotFoundError):  # removed since
                state = (self.root / name).stat()
                found.append(Entry(name, state.st_size, int(state.st_mtime)))
        return found

    def write(self, name: str, data: bytes | Path) -> None:
        with _written(self.root / name, _blocks(data) if isinstance(data, Path) else [data]) as temporary:
            temporary.replace(self.root / name)

    def write_new(self, name: str, data: bytes | Path) -> None:
        target = self.root / name
        with _written(target, _blocks(data) if isinstance(data, Path) else [data]) as temporary:
            try:
                os.link(temporary, target)  # unlike a rename, it fails if the name is taken
            except FileExistsError:
                raise FileExistsError(errno.EEXIST, "exists already", str(target)) from None
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
                    raise
                raise UserError(
                    f"{self.root}: its file system has no hard links, which a store needs; put the store elsewhere"
                ) from None

    def remove(self, name: str) -> None:
        path = self.root / name
        path.unlink(missing_ok=True)
        with suppress(OSError):  # the folder is not empty, or missing
            path.parent.rmdir()


class Bucket(Storage):
    """A bucket, or a part of one. boto3 finds endpoint, credentials and region in AWS's variables and files."""

    def __init__(self, bucket: str, prefix: str, endpoint: str | None = None) -> None:
        """endpoint: URL of the server; None: as boto3 finds it. Nothing is sent yet.

        Raises UserError for settings that boto3 refuses.
        """
        self.bucket, self.prefix, self.named_endpoint = bucket, f"{prefix}/" if prefix else "", endpoint
        self.uri = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            value = os.environ.get(variable, "")
            if value != value.strip():  # a header cannot hold it, and the error would show it
                raise UserError(f"{self.uri}: {variable} begins or ends with a blank or a line break; remove it")
        self.variables = frozenset(item for item in os.environ.items() if item[0].startswith("AWS_"))
        with self._explained(""):
            try:
                self.client = _client(self.variables, endpoint)
                self.endpoint = "AWS" if _of_aws(self.client) else self.client.meta.endpoint_url
            except ValueError as error:  # an endpoint that is no URL, a region that is no name
                raise UserError(f"{self.uri}: {_line(error)}; check the variables AWS_*") from None

    def chunks(self, name: str, start: int = 0, *, once: bool = False) -> Iterator[bytes]:
        part: dict[str, Any] = {"Range": f"bytes={start}-"} if start else {}
        with self._explained(name):
            client = _client(self.variables, self.named_endpoint, once=True) if once else self.client
            response = client.get_object(Bucket=self.bucket, Key=self.prefix + name, **part)
            with closing(response["Body"]) as body:
                yield from body.iter_chunks(BLOCK)

    def names(self, prefix: str = "") -> list[str]:
        return [entry.name for entry in self.entries(prefix)]

    def entries(self, prefix: str = "") -> list[Entry]:
        with self._explained(prefix):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            return sorted(
                Entry(
                    each["Key"].removeprefix(self.prefix),
                    each["Size"],
                    int(each["LastModified"].timestamp()),
                    each.get("ETag", "").strip('"'),
                )
                for page in pages
                for each in page.get("Contents", ())
            )

    def write(self, name: str, data: bytes | Path) -> None:
        with self._explained(name), _opened(data) as body:
            self.client.put_object(Bucket=self.bucket, Key=self.prefix + name, Body=body)

    def write_new(self, name: str, data: bytes | Path) -> None:
        from botocore.exceptions import ClientError

        with self._explained(name):
            deadline = time.monotonic() + CONFLICT_SECONDS
            for pause in Pauses(0.1, 1.6):
                try:
                    with _opened(data) as body:
                        self._put_new(name, body)
                    return
                except ClientError as error:
                    # Somebody is writing or deleting the same name; only another try tells how it ended.
                    conflict = error.response["Error"].get("Code") == "ConditionalRequestConflict"
                    if not conflict or time.monotonic() + pause > deadline:
                        raise
                time.sleep(pause)

    def remove(self, name: str) -> None:
        with self._explained(name):
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + name)

    def _put_new(self, name: str, body: Any) -> None:
        self.client.put_object(Bucket=self.bucket, Key=self.prefix + name, Body=body, IfNoneMatch="*")

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turn boto3's errors into FileNotFoundError, FileExistsError or UserError. Values of credentials never show."""
        from botocore import exceptions

        where = f"{self.uri}/{name}" if name else self.uri
        credentials = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
        try:
            yield
        except exceptions.ClientError as error:
            code = error.response["Error"].get("Code", "")
            if code == "NoSuchKey":
                raise FileNotFoundError(errno.ENOENT, "not in the store", where) from None
            if code == "PreconditionFailed":
                raise FileExistsError(errno.EEXIST, "exists already", where) from None
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            refusal = self._refusal(code)
            kind = UnavailableError if not refusal and (status >= 500 or code in BUSY) else UserError
            if code == "AccessDenied":
                kind = DeniedError
            raise kind(f"{where}: {refusal or f'{_line(error)} at {self.endpoint}'}") from None
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
            missing = [variable for variable in credentials if not os.environ.get(variable)]
            raise UserError(f"{where}: no credentials; set {' and '.join(missing or credentials)}") from None
        except (
            exceptions.ConnectionError,
            exceptions.HTTPClientError,
            exceptions.IncompleteReadError,
            exceptions.FlexibleChecksumError,
        ) as error:
            raise UnavailableError(
                f"{where}: no whole answer from {self.endpoint} ({type(error).__name__}); "
                "check the network, and AWS_ENDPOINT_URL or endpoint_url in ~/.aws/config, and try again"
            ) from None
        except exceptions.BotoCoreError as error:
            raise UserError(f"{where}: {_line(error)}") from None

    def _refusal(self, code: str) -> str | None:
        """What a refused request means, and what the user can do."""
        return {
            "NoSuchBucket": f"no bucket {self.bucket!r} at {self.endpoint}; create it, or check its name",
            "InvalidAccessKeyId": f"AWS_ACCESS_KEY_ID is not known at {self.endpoint}",
            "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY is not that of AWS_ACCESS_KEY_ID",
            "ExpiredToken": "AWS_SESSION_TOKEN has expired; get a new one",
            "InvalidToken": "AWS_SESSION_TOKEN is not valid; get a new one, or unset it",
            "AccessDenied": f"access denied at {self.endpoint}; these credentials lack the permission",
            "NotImplemented": f"{self.endpoint} has no conditional writes (If-None-Match), which a store needs",
        }.get(code)


def storage(uri: str, endpoint: str | None = None) -> Storage:
    """The store at a folder's path, `file:///path` or `s3://bucket/prefix`. Nothing is read, created or sent yet.

    endpoint: URL of the S3 server; None: as boto3 finds it in variables and files.
    Raises UserError for another kind of URI and for settings of S3 that cannot work.
    """
    scheme, separator, rest = uri.partition("://")
    if scheme == "s3" and rest and rest[0] != "/":
        bucket, _, prefix = rest.partition("/")
        return Bucket(bucket, prefix.strip("/"), endpoint)
    if scheme == "file" and rest.startswith("/"):
        path = Path(unquote(rest))
    elif uri and not separator:
        path = Path(uri)
    else:
        raise UserError(f"{uri!r}: not a store; expected a folder, file:///path or s3://bucket/prefix")
    if path.exists() and not path.is_dir():
        raise UserError(f"{uri}: is a file; a store is a folder, file:///path or s3://bucket/prefix")
    return Folder(uri.rstrip("/") or "/", path)


@functools.lru_cache(maxsize=8)
def _client(variables: frozenset[tuple[str, str]], endpoint: str | None = None, once: bool = False) -> "S3Client":
    """The client for this state of the environment. It serves all threads, and takes 60 ms to make.

    once: it sends a request once, and waits 20 s instead of 60 for each part of the answer.
    """
    import boto3
    from botocore.config import Config

    settings: dict[str, Any] = {"connect_timeout": 10, "retries": {"mode": "standard"}, "max_pool_connections": 32}
    if once:
        settings |= {"retries": {"mode": "standard", "total_max_attempts": 1}, "read_timeout": 20}
    session = boto3.session.Session()
    client = session.client("s3", endpoint_url=endpoint, config=Config(**settings))
    name = "request_checksum_calculation"
    chosen = dict(variables).get(f"AWS_{name.upper()}") or session._session.get_scoped_config().get(name)
    # S3-compatible stores older than 2025 refuse the checksums that boto3 appends to the body of an upload.
    if not _of_aws(client) and not chosen:
        client = session.client(
            "s3", endpoint_url=endpoint, config=Config(**settings, request_checksum_calculation="when_required")
        )
    return client


def _of_aws(client: "S3Client") -> bool:
    """Whether requests go to Amazon's own servers, whether botocore found the endpoint in a variable or in a file."""
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextmanager
def _opened(data: bytes | Path) -> Iterator[Any]:
    """The body of a request."""
    if isinstance(data, bytes):
        yield data
    else:
        with data.open("rb") as file:
            yield file


def _blocks(path: Path, start: int = 0) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(BLOCK):
            yield block


@contextmanager
def _written(target: Path, blocks: Iterable[bytes]) -> Iterator[Path]:
    """A temporary file beside `target` with these contents, on the disk; it is gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open("wb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    except OSError as error:
        error.filename = error.filename or str(target)  # the error of a full disk names no file by itself
        raise
    finally:
        temporary.unlink(missing_ok=True)
