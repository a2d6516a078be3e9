"""Shards: tar files in the webdataset format, with an index that says where every array lies.

A sample's members are adjacent: `<key>.gt.npy`, `<key>.lq-<level>.npy`, `<key>.mask-<n>.npy` or `<key>.frame-<n>.npy`,
and `<key>.json`. Arrays are uint8, or little-endian uint16 where the task says `bits: 16`, HWC, RGB order; where the codec
is png, the same in `.png` members. Inputs that are no levels (kind scale) and mixed negatives are int16, of which 16384 is
1; PNG holds them with 32768 added. A degradation that does not commute with the turns of a square has, in the split to
train on, members such as `<key>.lq1-<level>.npy`: what it makes of view 1 (pipeline.degradations.orientation), turned back.
Two shards have the same bytes if their recipes (see plan.recipe_digest) are equal; nothing else matters: no times,
owners or host names are in them.
"""

import hashlib
import io
import itertools
import json
import os
import struct
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, TypeVar

import cv2
import numpy as np
import pyarrow as pa
from pydantic import Field, PlainValidator, TypeAdapter, ValidationError, model_validator

from pipeline.config import Frozen, parse_json
from pipeline.depth import Bits
from pipeline.dvc_objects import DvcFolder
from pipeline.errors import UserError, some
from pipeline.storage import Bucket, Folder, Storage, storage
from pipeline.tables import INDEX_SCHEMA, NEGATIVES_SCHEMA, PAIRS_SCHEMA, check_index, check_numbers, read_table
from pipeline.task import AnyDegradation, Negatives, recorded

LISTING = 3  # the version of shards.json and the tables that it names
TABLES = ("index", "pairs", "negatives")
SCHEMAS = {"index": INDEX_SCHEMA, "pairs": PAIRS_SCHEMA, "negatives": NEGATIVES_SCHEMA}
PART_BYTES = 2**30  # the most bytes of a part of a table; a build writes less than a megabyte

Member = tuple[str, bytes, dict[str, Any]]  # name without the key, contents, columns of the index


def npy_member(name: str, pixels: np.ndarray, **columns: Any) -> Member:
    """An array as a member. pixels: uint8, uint16 or int16 (H, W, C); they begin at a multiple of 64 in the shard."""
    buffer = io.BytesIO()
    stored = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<"))
    np.lib.format.write_array(buffer, stored, version=(1, 0), allow_pickle=False)
    data = buffer.getvalue()
    header = len(data) - pixels.nbytes
    return name, data, {"header": header, "shape": list(pixels.shape), "dtype": str(pixels.dtype), **columns}


def png_member(name: str, pixels: np.ndarray, **columns: Any) -> Member:
    """An image as a member in PNG. pixels: uint8, uint16 or int16, (H, W, 1) or (H, W, 3) RGB."""
    held = pixels.view(np.uint16) ^ np.uint16(2**15) if pixels.dtype == np.int16 else pixels  # 32768 added
    ok, data = cv2.imencode(".png", cv2.cvtColor(held, cv2.COLOR_RGB2BGR) if held.shape[2] == 3 else held)
    assert ok
    return name, data.tobytes(), {"header": 0, "shape": list(pixels.shape), "dtype": str(pixels.dtype), **columns}


def json_member(value: dict[str, Any]) -> Member:
    """A sample's metadata as a member."""
    return "json", json.dumps(value, sort_keys=True).encode(), {"role": "json"}


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Shard(Frozen):
    """One file, as shards.json lists it."""

    split: Literal["train", "val", "test"]
    name: str = Field(pattern=r"^[0-9a-f]{16}\.tar$")
    bytes: int = Field(ge=tarfile.RECORDSIZE, le=2**50)
    sha256: Sha256
    groups: int = Field(ge=1)
    members: int

    @model_validator(mode="after")
    def _agree(self) -> "Shard":
        if self.name != f"{self.sha256[:16]}.tar":
            raise ValueError("a shard is named by its sha256")
        if not self.groups <= self.members <= self.bytes // (2 * tarfile.BLOCKSIZE):
            raise ValueError("a shard has a member of each group, and room for all members")
        return self


class Part(Frozen):
    """The rows of some shards in each table: <table>/<the start of their sha256>.parquet, so that an edit moves few files."""

    shards: int = Field(ge=1, description="it describes so many, from the first that no part before it describes")
    index: Sha256
    pairs: Sha256 | None = Field(None, description="which tasks of pairs of frames have")
    negatives: Sha256 | None = Field(None, description="which tasks with negatives have")

    def has(self, pairs: bool, negatives: bool) -> bool:
        """Whether it has these tables."""
        return ((self.pairs is not None), (self.negatives is not None)) == (pairs, negatives)


VERSIONS = "versions.json"  # beside shards.json: library -> version that the dataset was built with
RECIPES = "recipes.json"  # <split>/<name> of a shard -> its `recipe_digest`: whoever needs the same takes this shard


def table_file(table: str, sha256: str) -> str:
    """The name of a part of a table in a dataset."""
    return f"{table}/{sha256[:16]}.parquet"


Kind = TypeVar("Kind")


def _as_task(kind: type[Kind]) -> PlainValidator:
    """Values that a task may have, as a dictionary with every key."""
    adapter: TypeAdapter = TypeAdapter(kind)
    return PlainValidator(lambda value: adapter.dump_python(adapter.validate_python(value), mode="json"))


class Listing(Frozen):
    """The contents of shards.json, which list what a build consists of."""

    task: str = Field(pattern=r"^[^/\x00-\x1f\x7f]{1,255}$")
    format: int = Field(ge=LISTING, le=LISTING)
    colour: Literal["y", "gray", "rgb"]
    codec: Literal["raw", "png"]
    bits: Bits = Field(8, description="a channel, of all arrays; 8 is not written")
    degradation: Annotated[dict[str, Any], _as_task(AnyDegradation)]
    splits: dict[Literal["train", "val", "test"], tuple[str, ...]] = Field(
        description="split of the shards: its sources, as <dataset>/<split>"
    )
    licences: dict[str, Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")] | None] = Field(
        default_factory=dict, description="of each data set in the splits; null: not known"
    )
    digest: Sha256 = Field(description="`dataset_digest` of the shards")
    negatives: Annotated[dict[str, Any] | None, _as_task(Negatives | None)] = None
    images: dict[Literal["found", "used", "rejected"], int] = Field(
        description="of the sources; found = used + rejected"
    )
    parts: tuple[Part, ...] = Field(min_length=1, description="of the tables")
    shards: tuple[Shard, ...] = Field(min_length=1)
    shards_in: str | None = Field(
        None,
        description="URI of a store that has them by name, with the tables; null: <split>/ beside this file, as the tables",
    )

    @model_validator(mode="after")
    def _tables(self) -> "Listing":
        of_frames, negatives = recorded(self.degradation).of_frames, self.negatives is not None
        if not all(part.has(of_frames, negatives) for part in self.parts):
            raise ValueError("tables of pairs belong to scenes without targets, and tables of negatives to negatives")
        if sum(part.shards for part in self.parts) != len(self.shards):
            raise ValueError("the tables are of other shards")
        if len({(shard.split, shard.name) for shard in self.shards}) < len(self.shards):
            raise ValueError("a shard is listed twice")
        return self


def write_shard(samples: Iterable[tuple[str, list[Member]]], folder: Path) -> dict[str, Any]:
    """Write one shard into `folder` under the name of its content.

    samples: (key, members) in order. Returns {"name", "bytes", "sha256", "rows"}: those of the file, and its rows of the index
    without the split. Nothing half-written ever carries the final name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{os.getpid()}-{os.urandom(4).hex()}.tmp"
    rows: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    position = 0
    try:
        with temporary.open("wb") as file:

            def put(data: bytes) -> None:
                nonlocal position
                file.write(data)
                digest.update(data)
                position += len(data)

            for key, members in samples:
                for name, data, columns in members:
                    entry = tarfile.TarInfo(f"{key}.{name}")
                    entry.size, entry.mode, entry.mtime = len(data), 0o644, 0
                    put(entry.tobuf(tarfile.USTAR_FORMAT))
                    sha256 = hashlib.sha256(data).hexdigest()
                    rows.append(
                        {"key": key, "group": key, "member": name, "offset": position, "length": len(data)}
                        | {"sha256": sha256, **columns}
                    )
                    put(data)
                    put(bytes(-len(data) % tarfile.BLOCKSIZE))
            put(bytes(2 * tarfile.BLOCKSIZE))
            put(bytes(-position % tarfile.RECORDSIZE))
            file.flush()
            os.fsync(file.fileno())
        name = f"{digest.hexdigest()[:16]}.tar"
        temporary.replace(folder / name)
    finally:
        temporary.unlink(missing_ok=True)
    rows = [{"shard": name, **row} for row in rows]
    return {"name": name, "bytes": position, "sha256": digest.hexdigest(), "rows": rows}


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def samples_digest(listing: dict[str, Any]) -> str:
    """What the samples of a built dataset depend on, as JSON: shards, online degradation, pairs and negatives."""
    degradation = listing["degradation"]
    online = degradation if recorded(degradation).online else None
    return json.dumps([listing["digest"], online, _table_sum(listing, "pairs"), _table_sum(listing, "negatives")])


def _table_sum(listing: dict[str, Any], table: str) -> str | None:
    """A digest of a table, that of its only part if it has one; None: the dataset has no such table."""
    sums = [part[table] for part in listing["parts"] if part[table]]
    return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest() if sums else None


@lru_cache(maxsize=4096)
def _npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    buffer = io.BytesIO()
    described = {"descr": np.dtype(dtype).newbyteorder("<").str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def _parsed(start: bytes) -> tuple[Any, ...] | None:
    """Shape, order and dtype of a .npy header, whatever padding numpy gave it; None if it is not a whole header."""
    file = io.BytesIO(start)
    try:
        np.lib.format.read_magic(file)
        found = np.lib.format.read_array_header_1_0(file)
    except (ValueError, TypeError, RecursionError, MemoryError):  # raised where numpy has ast parse the header
        return None
    return found if file.tell() == len(start) else None


def described(start: bytes, header: int, shape: tuple[int, ...], dtype: str) -> bool:
    """Whether a member is the array that the index says. start: its first bytes, `header` or 32 if there is none (PNG)."""
    if header:
        return start == _npy_header(shape, dtype) or _parsed(start) == (shape, False, np.dtype(dtype))
    if len(start) < 26 or start[:8] != b"\x89PNG\r\n\x1a\n" or start[12:16] != b"IHDR":
        return False
    width, height, bits, colour = struct.unpack(">IIBB", start[16:26])
    held = (height, width, {0: 1, 2: 3}.get(colour), bits)
    return held == (*shape, 8 * np.dtype(dtype).itemsize)


def damaged(path: Path, members: Iterable[tuple[int, int, str]]) -> Iterator[int]:
    """Which members of a shard differ from the index. members: offset, length and sha256 of the contents of each."""
    with path.open("rb") as file:
        for i, (offset, length, sha256) in enumerate(members):
            file.seek(offset)
            if hashlib.sha256(file.read(length)).hexdigest() != sha256:
                yield i


def dataset_digest(shards: list[dict[str, Any]]) -> str:
    """One digest for a set of shards and their order; it does not depend on how the index is encoded."""
    lines = [f"{shard['split']}/{shard['name']} {shard['sha256']}" for shard in shards]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_shards_json(place: Storage | Path) -> dict[str, Any]:
    """The shards.json of a build, as `Listing` has it. Raises UserError if it is missing or damaged."""
    place = Folder(str(place), place) if isinstance(place, Path) else place
    where = f"{place.uri}/shards.json"
    try:
        return read_listing(place.read("shards.json"), where)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{where}: not found; `memoir build` writes it") from None


def read_listing(data: bytes, where: str) -> dict[str, Any]:
    """The contents of a shards.json as `Listing` has it. Raises UserError, which says where, if they are damaged."""
    try:
        value = parse_json(data, where)
        what = "" if isinstance(value, dict) else "not JSON"
    except UserError:
        what = "not JSON"
    try:
        if not what:
            return Listing.model_validate(value).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        what = ".".join(str(part) for part in first["loc"]) or first["msg"].removeprefix("Value error, ")
    raise UserError(f"{where}: damaged, or of another version of memoir ({what}); build again")


def parts(listing: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each part of the tables, as shards.json lists it, with the shards that it describes."""
    shards = iter(listing["shards"])
    for part in listing["parts"]:
        yield part, list(itertools.islice(shards, part["shards"]))


def store_of_shards(place: Storage, listing: dict[str, Any]) -> Storage:
    """Where the shards and the tables of a dataset are. place: where its shards.json is.

    Raises UserError for a shards.json in a bucket that points out of that bucket: to this machine's files, or to another
    bucket, where the reader's credentials would be used; and for one in a DVC remote, which has its shards beside it.
    """
    if not listing["shards_in"]:
        return place
    if isinstance(place, DvcFolder):
        raise UserError(
            f"{place.uri}: its shards are in {listing['shards_in']}, and not in DVC's remote; build it again"
        )
    store = storage(listing["shards_in"])
    if isinstance(place, Bucket) and not (isinstance(store, Bucket) and store.bucket == place.bucket):
        raise UserError(
            f"{place.uri}/shards.json: has its shards in {store.uri}, which is not in its bucket; send the dataset again"
        )
    return store


def shard_file(shard: dict[str, Any], listing: dict[str, Any]) -> str:
    """The name of a shard where the shards of a dataset are."""
    return str(shard["name"] if listing["shards_in"] else f"{shard['split']}/{shard['name']}")


def check_present(place: Storage, listing: dict[str, Any]) -> None:
    """Raise UserError if files of a dataset in a folder are missing, or shards cut off. In a bucket nothing is looked at."""
    store = store_of_shards(place, listing)
    if not isinstance(store, Folder):
        return
    wanted = {table_file(table, part[table]): None for part, _ in parts(listing) for table in TABLES if part[table]}
    wanted |= {shard_file(shard, listing): shard["bytes"] for shard in listing["shards"]}
    lacking = [
        name
        for name, size in wanted.items()
        if not (path := store.root / name).is_file() or size not in (None, path.stat().st_size)
    ]
    if lacking:
        raise UserError(f"{store.uri}: missing or cut off: {some(lacking)}; `dvc pull`, or run `memoir build` again")


def verify(place: Storage | Path) -> Iterator[str]:
    """Everything that is wrong with a built dataset, one line each; nothing if it is whole.

    It checks each shard's length and sha256 against shards.json, the index against shards.json, each member against the
    index. From a bucket, one file at a time is on this machine. Raises UserError if shards.json is missing or damaged.
    """
    place = Folder(str(place), place) if isinstance(place, Path) else place
    listing = read_shards_json(place)
    store = store_of_shards(place, listing)
    if dataset_digest(listing["shards"]) != listing["digest"]:
        yield f"{place.uri}/shards.json: its dataset digest does not match its shards; build again"
    by_shard: dict[tuple[str, str], list[dict[str, Any]]] = {}  # without those of a part that is damaged
    expected = set()
    for part, shards in parts(listing):
        for table in (name for name in TABLES if part[name]):
            name = table_file(table, part[table])
            expected.add(name)
            with _local(store, name) as path:
                try:
                    held = read_part(path, table, part, shards, listing, f"{store.uri}/{name}")
                except UserError as error:
                    yield str(error)
                    continue
            if table == "index":
                by_shard |= {(shard["split"], shard["name"]): [] for shard in shards} | _by_shard(held)
    expected |= {f"{shard['split']}/{shard['name']}" for shard in listing["shards"]}
    for name in place.names():
        if name.count("/") == 1 and name.endswith((".tar", ".parquet")) and name not in expected:
            yield f"{place.uri}/{name}: not in shards.json; remove it, or build again"
    for shard in listing["shards"]:
        rows = by_shard.get((shard["split"], shard["name"]))
        name = shard_file(shard, listing)
        with _local(store, name) as path:
            if problem := verify_shard(path, shard, rows):
                yield f"{store.uri}/{name}: {problem}"


def read_part(
    source: bytes | Path,
    table: str,
    part: dict[str, Any],
    shards: list[dict[str, Any]],
    listing: dict[str, Any],
    where: str,
) -> pa.Table:
    """A part of a table of a dataset, with every row checked.

    source: contents, or a file. table: index, pairs or negatives. part, shards: as `parts` gives them. listing: as
    `read_listing` returns it. where: for messages. Raises UserError, which names the row, also for a missing file.
    """
    if isinstance(source, Path) and not source.is_file():
        raise UserError(f"{where}: missing; build again, or `dvc pull`")
    found = file_sha256(source) if isinstance(source, Path) else hashlib.sha256(source).hexdigest()
    if found != part[table]:
        raise UserError(f"{where}: damaged, or of another build than shards.json; build again")
    if table == "index":
        held = read_table(source, INDEX_SCHEMA, where, rows=sum(shard["members"] for shard in shards))
        sizes = {f"{shard['split']}/{shard['name']}": shard["bytes"] for shard in shards}
        check_index(held, sizes, listing["codec"], listing["bits"], where)
    elif table == "pairs":
        held = read_table(source, PAIRS_SCHEMA, where)
        check_numbers(held, {"v": 0, "w": 0}, {}, where)
    else:
        held = read_table(source, NEGATIVES_SCHEMA, where)
        least = dict.fromkeys(("level", "k", "permille", "partner_level"), 0)
        check_numbers(held, least, {"permille": 1000, "k": listing["negatives"]["number"] - 1}, where)
    return held


def _by_shard(index: pa.Table) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The rows of an index by split and shard, in order."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in index.drop_columns(["group", "role", "level", "parameters"]).to_pylist():
        found.setdefault((row["split"], row["shard"]), []).append(row)
    return found


@contextmanager
def _local(store: Storage, name: str) -> Iterator[Path]:
    """A path on this machine with a file of the store; nothing is there if the store lacks the file."""
    if isinstance(store, Folder):
        yield store.root / name
        return
    with TemporaryDirectory(prefix="memoir-verify-") as copy:
        with suppress(FileNotFoundError):
            store.download(name, Path(copy, "file"))
        yield Path(copy, "file")


def verify_shard(path: Path, shard: dict[str, Any], rows: list[dict[str, Any]] | None) -> str:
    """What is wrong with a shard, and how to mend it; nothing if it is whole. shard: as listed. rows: of the index, if known."""
    if not path.exists():
        return "missing; build again, or `dvc pull`"
    size = path.stat().st_size
    if size != shard["bytes"]:
        what = "truncated" if size < shard["bytes"] else "too long"
        return f"{what}: {size:,} bytes of {shard['bytes']:,}; build again"
    if file_sha256(path) != shard["sha256"]:
        members = [(row["offset"], row["length"], row["sha256"]) for row in rows or ()]
        for row in (rows[i] for i in damaged(path, members) if rows):
            where = f"in {row['key']}.{row['member']} at byte {row['offset']:,}"
            return f"changed since it was built, {where}; build again"
        return f"changed since it was built{', between its members' if rows else ''}; build again"
    if rows is not None:
        try:
            with tarfile.open(path, "r:") as tar:
                inside = [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]
        except (tarfile.TarError, ValueError, OverflowError):
            return "not a tar file; build again"
        if inside != [(f"{row['key']}.{row['member']}", row["offset"], row["length"]) for row in rows]:
            return f"its {len(inside)} members are not the {len(rows)} of the index; build again"
        with path.open("rb") as file:
            for row in (row for row in rows if row["shape"]):
                file.seek(row["offset"])
                if not described(file.read(row["header"] or 32), row["header"], tuple(row["shape"]), row["dtype"]):
                    where = f"{row['key']}.{row['member']} at byte {row['offset']:,}"
                    return f"{where} is no {row['dtype']} array of {tuple(row['shape'])}; build again"
        if (len(rows), len({row["key"] for row in rows})) != (shard["members"], shard["groups"]):
            counted = f"{shard['groups']} groups and {shard['members']} members"
            return f"not the {counted} that shards.json counts; build again"
    return ""
