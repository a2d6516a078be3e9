"""What the stages look at: digests of the raw data sets, wherever they lie, so that an edit anywhere is seen.

DVC only compares files that it finds below the project. The stage `list` therefore always runs, and writes a digest of each
data set for `ingest` to depend on. A digest is made of names and contents alone: it is equal in all clones that have equal
data, whatever the times of their files.
"""

import hashlib
import os
import stat
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipeline.config import Frozen, parse_json
from pipeline.cpus import available_cpus
from pipeline.errors import UserError
from pipeline.layouts.files import files_under
from pipeline.raw.manifest import Source, write_table
from pipeline.raw.sources import is_remote
from pipeline.storage import Bucket, storage

MEMORY = Path(".cache/contents.parquet")  # of this machine: what was read before, by path
MEMORY_SCHEMA = pa.schema(
    [
        ("path", pa.binary()),
        *((name, pa.int64()) for name in ("device", "inode", "size", "modified", "changed")),  # times in nanoseconds
        ("sha256", pa.string()),
    ]
)
SETTLED_NS = 2 * 10**9  # a younger file may change once more within one tick of its file system's clock

Facts = tuple[int, int, int, int, int]  # the numbers of MEMORY_SCHEMA: they change with every write


class Listed(Frozen):
    """A set of files, as the stage `list` writes it. digest: of names and contents, 64 hex digits."""

    root: str
    files: int = Field(ge=0)
    bytes: int = Field(ge=0)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class Contents:
    """The contents of files by their sha256. A file is read once, and again when the file system says that it was written."""

    def __init__(self, memory: Path = MEMORY) -> None:
        self.memory = memory
        self.known: dict[bytes, tuple[Facts, str]] = {}
        self.seen: dict[bytes, tuple[Facts, str]] = {}
        with suppress(OSError, pa.ArrowException):  # a memory that is lost costs time and nothing else
            table = pq.read_table(memory)
            if table.schema.equals(MEMORY_SCHEMA):
                path, *facts, sha256 = (column.to_pylist() for column in table.columns)
                self.known = dict(zip(path, zip(zip(*facts, strict=True), sha256, strict=True), strict=True))

    def marks(self, paths: Iterable[Path]) -> list[tuple[int, str]]:
        """(bytes, mark) of each file: the mark is its sha256, or a phrase for what cannot be read."""
        with ThreadPoolExecutor(available_cpus()) as pool:
            return list(pool.map(self._mark, paths))

    def _mark(self, path: Path) -> tuple[int, str]:
        name = os.fsencode(path.absolute())
        try:
            facts = _facts(found := path.stat())
            if not stat.S_ISREG(found.st_mode):
                return 0, "no file"
            if name in self.seen:
                return facts[2], self.seen[name][1]
            known = self.known.get(name)
            if known is not None and known[0] == facts:
                self.seen[name] = known
                return facts[2], known[1]
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return 0, f"{error.strerror}"
        if time.time_ns() - max(facts[3:]) > SETTLED_NS:
            self.seen[name] = facts, sha256
        return facts[2], sha256

    def save(self) -> None:
        """Remember what was seen for the next time; files that were not looked at are forgotten."""
        if self.seen == self.known:
            return
        rows = [(name, *facts, sha256) for name, (facts, sha256) in sorted(self.seen.items())]
        columns = zip(*rows, strict=True) if rows else ((),) * len(MEMORY_SCHEMA)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, MEMORY_SCHEMA, strict=True)]
        write_table(self.memory, pa.Table.from_arrays(arrays, schema=MEMORY_SCHEMA))


def _facts(found: os.stat_result) -> Facts:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def digest_of(lines: Iterable[tuple[str, ...]]) -> str:
    """One digest of lines of texts, whatever characters these hold: 64 hex digits."""
    digest = hashlib.sha256()
    for line in lines:
        fields = [os.fsencode(text) for text in line]
        digest.update(f"{len(fields)};".encode() + b"".join(b"%d:%b" % (len(each), each) for each in fields))
    return digest.hexdigest()


def list_source(root: str, contents: Contents) -> Listed:
    """The files of a data set: all below a folder but hidden ones, or all objects of an s3:// URI.

    A bucket's objects are told apart by their ETags, and none is read. Raises UserError for a root that is not there.
    """
    if is_remote(root):
        bucket = storage(root)
        assert isinstance(bucket, Bucket)
        entries = [entry for entry in bucket.entries() if not entry.name.endswith("/")]  # those are "folders"
        if not entries:
            raise UserError(f"{root}: nothing there; check the name, or upload the data set")
        lines = [(entry.name, str(entry.size), entry.etag) for entry in entries]
        return Listed(root=root, files=len(lines), bytes=sum(e.size for e in entries), digest=digest_of(lines))
    if not Path(root).exists():
        raise UserError(
            f"{root}: not there; unpack the data set there, or `dvc pull` it, or mend its root in params.yaml"
        )
    paths = list(files_under(Path(root)))
    marks = contents.marks(paths)
    names = (path.relative_to(root).as_posix() for path in paths)
    digest = digest_of((name, mark) for name, (_, mark) in zip(names, marks, strict=True))
    return Listed(root=root, files=len(paths), bytes=sum(size for size, _ in marks), digest=digest)


def list_sources(sources: dict[str, Source], before: Path, contents: Contents) -> tuple[dict[str, Listed], list[str]]:
    """Every data set by its name, and lines for those that are not at hand.

    before: the file that this was written to the last time. A data set that is not at hand, since this clone has the shards
    and not the images, or a bucket does not answer, stays as it was listed. Raises UserError if it never was.
    """
    found: dict[str, Listed] = {}
    lines = []
    for name, source in sources.items():
        try:
            found[name] = list_source(source.root, contents)
        except UserError as error:
            was = read_listed(before).get(name)
            if was is None or was.root != source.root:
                raise
            found[name] = was
            lines.append(f"{name}: taken as it was listed before, {was.files:,} files, for it is not at hand: {error}")
    return found, lines


def read_listed(path: Path) -> dict[str, Listed]:
    """What an earlier `list` wrote; nothing if there is none. Raises UserError for another file."""
    try:
        value: Any = parse_json(path.read_bytes(), str(path))
        return {name: Listed.model_validate(each) for name, each in value.items()}
    except FileNotFoundError:
        return {}
    except (UserError, ValueError, AttributeError):
        raise UserError(f"{path}: not what `memoir list` writes; remove it") from None
