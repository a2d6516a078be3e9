"""Shards: tar files in the webdataset format, with an index of where every array lies.

A sample's members are adjacent: `<key>.gt.npy`, `<key>.lq-<level>.npy`, `<key>.mask-<n>.npy` or `<key>.frame-<n>.npy`,
and `<key>.json`. Arrays are uint8, HWC, RGB order; where the codec is png, the same in `.png` members.
Two shards have the same bytes if their recipes (see plan.recipe_digest) are equal; nothing else matters: no times,
owners or host names are in them.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from pipeline.config import Frozen
from pipeline.errors import UserError
from pipeline.plan import FORMAT
from pipeline.storage import Folder, Storage, storage

INDEX_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("shard", pa.string()),  # file name: the start of the sha256 of its bytes
        ("key", pa.string()),
        ("group", pa.string()),
        ("member", pa.string()),  # name of the member without the key: gt.npy, lq-q10.npy, json
        ("role", pa.string()),  # gt | lq | mask | frame | negative | json
        (
            "level",
            pa.int32(),
        ),  # quality, factor; of published pairs the number of the input, of a scene that of the frame
        ("offset", pa.int64()),  # of the member's contents in the shard
        ("length", pa.int64()),  # of the contents
        ("header", pa.int32()),  # bytes of the .npy header before the pixels
        ("shape", pa.list_(pa.int32())),  # H, W, C
        ("dtype", pa.string()),
        ("parameters", pa.string()),  # JSON: what made this member
        ("sha256", pa.string()),  # of the contents
    ]
)

# Of a task of time-lapse scenes: the pairs of frames that are samples, by their frames' numbers.
PAIRS_SCHEMA = pa.schema([("split", pa.string()), ("key", pa.string()), ("v", pa.int32()), ("w", pa.int32())])

# Of a task with negatives: see pipeline.sampling.negatives.
NEGATIVES_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("key", pa.string()),
        ("level", pa.int32()),
        ("k", pa.int32()),
        ("permille", pa.int32()),
        ("partner", pa.string()),
        ("partner_level", pa.int32()),
    ]
)

Member = tuple[str, bytes, dict[str, Any]]  # name without the key, contents, columns of the index


def npy_member(name: str, pixels: np.ndarray, **columns: Any) -> Member:
    """An array as a member. pixels: uint8 (H, W, C); they begin at a multiple of 64 in the shard."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(pixels), version=(1, 0), allow_pickle=False)
    data = buffer.getvalue()
    header = len(data) - pixels.nbytes
    return name, data, {"header": header, "shape": list(pixels.shape), "dtype": str(pixels.dtype), **columns}


def png_member(name: str, pixels: np.ndarray, **columns: Any) -> Member:
    """An image as a member in PNG. pixels: uint8 (H, W, 1) or (H, W, 3) RGB."""
    ok, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.shape[2] == 3 else pixels)
    assert ok
    return name, data.tobytes(), {"header": 0, "shape": list(pixels.shape), "dtype": str(pixels.dtype), **columns}


def json_member(value: dict[str, Any]) -> Member:
    """A sample's metadata as a member."""
    return "json", json.dumps(value, sort_keys=True).encode(), {"role": "json"}


class Shard(Frozen):
    """One file, as shards.json lists it."""

    split: Literal["train", "val", "test"]
    name: str = Field(pattern=r"^[0-9a-f]{16}\.tar$")
    bytes: int
    sha256: str
    groups: int
    members: int


class Listing(Frozen):
    """shards.json: what a build consists of."""

    task: str
    format: int = Field(ge=FORMAT, le=FORMAT)
    versions: dict[str, str] = Field(description="of the libraries that decided the bytes")
    colour: str
    codec: Literal["raw", "png"]
    degradation: dict[str, Any]
    splits: dict[str, tuple[str, ...]] = Field(description="split of the shards: its sources, as <dataset>/<split>")
    digest: str = Field(description="`dataset_digest` of the shards")
    index_sha256: str
    negatives: dict[str, Any] | None = None
    images: dict[Literal["found", "used", "rejected"], int] = Field(
        description="of the sources; found = used + rejected"
    )
    pairs_sha256: str | None = Field(None, description="of pairs.parquet, which tasks of pairs of frames have")
    negatives_sha256: str | None = Field(None, description="of negatives.parquet, which tasks with negatives have")
    shards: tuple[Shard, ...] = Field(min_length=1)
    shards_in: str | None = Field(
        None, description="URI of a store that has them by name; null: <split>/ beside this file"
    )


def write_shard(samples: Iterable[tuple[str, list[Member]]], folder: Path) -> dict[str, Any]:
    """Write one shard into `folder` under the name of its content.

    samples: (key, members) in order. Returns {"name", "bytes", "sha256", "rows"}: the file's, and its rows of the index
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
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def samples_digest(listing: dict[str, Any]) -> str:
    """What the samples of a built dataset depend on: its shards, and what makes other samples of the same shards."""
    degradation = listing["degradation"]
    online = degradation if degradation["kind"] == "noise" and degradation["drawn"] == "online" else None
    return json.dumps([listing["digest"], online, listing["pairs_sha256"], listing["negatives_sha256"]])


def damaged(path: Path, members: Iterable[tuple[int, int, str]]) -> Iterator[int]:
    """Which members of a shard are not what the index says. members: offset, length and sha256 of the contents of each."""
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
    """shards.json of a build, as `Listing` has it. Raises UserError if it is missing or damaged."""
    place = Folder(str(place), place) if isinstance(place, Path) else place
    where = f"{place.uri}/shards.json"
    try:
        return read_listing(place.read("shards.json"), where)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{where}: not found; `memoir build` writes it") from None


def read_listing(data: bytes, where: str) -> dict[str, Any]:
    """The contents of a shards.json as `Listing` has it. Raises UserError, which says where, if they are damaged."""
    try:
        return Listing.model_validate_json(data).model_dump()
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(
            f"{where}: damaged, or of another version of memoir ({place or 'not JSON'}); build again"
        ) from None


def verify(place: Storage | Path) -> Iterator[str]:
    """Everything that is wrong with a built dataset, one line each; nothing if it is whole.

    Every shard's length and sha256 against shards.json, the index against shards.json, every member against the index.
    Of a bucket one file at a time is on this machine. Raises UserError if shards.json is missing or damaged.
    """
    place = Folder(str(place), place) if isinstance(place, Path) else place
    listing = read_shards_json(place)
    if dataset_digest(listing["shards"]) != listing["digest"]:
        yield f"{place.uri}/shards.json: its dataset digest does not match its shards; build again"
    by_shard: dict[tuple[str, str], list[dict[str, Any]]] | None = None  # None: no index to compare with
    for name in ("index", "pairs", "negatives"):
        if listing[f"{name}_sha256"]:
            where = f"{place.uri}/{name}.parquet"
            with _local(place, f"{name}.parquet") as table:
                if not table.exists():
                    yield f"{where}: missing; build again, or `dvc pull`"
                elif file_sha256(table) != listing[f"{name}_sha256"]:
                    yield f"{where}: damaged, or of another build than shards.json; build again"
                elif name == "index":
                    by_shard = {}
                    for row in pq.read_table(table, schema=INDEX_SCHEMA).to_pylist():
                        by_shard.setdefault((row["split"], row["shard"]), []).append(row)
    expected = {(shard["split"], shard["name"]) for shard in listing["shards"]}
    for split, name in sorted((by_shard or {}).keys() - expected):
        yield f"{place.uri}/index.parquet: lists {split}/{name}, which shards.json lacks; build again"
    for name in place.names():
        if name.count("/") == 1 and name.endswith(".tar") and tuple(name.split("/")) not in expected:
            yield f"{place.uri}/{name}: not in shards.json; remove it, or build again"
    store = storage(listing["shards_in"]) if listing["shards_in"] else place
    for shard in listing["shards"]:
        rows = None if by_shard is None else by_shard.get((shard["split"], shard["name"]), [])
        name = shard["name"] if listing["shards_in"] else f"{shard['split']}/{shard['name']}"
        with _local(store, name) as path:
            if problem := _verify_shard(path, shard, rows):
                yield f"{store.uri}/{name}: {problem}"


@contextmanager
def _local(store: Storage, name: str) -> Iterator[Path]:
    """A file of a store on this machine, or a path where there is none."""
    if isinstance(store, Folder):
        yield store.root / name
        return
    with TemporaryDirectory(prefix="memoir-verify-") as copy:
        with suppress(FileNotFoundError):
            store.download(name, Path(copy, "file"))
        yield Path(copy, "file")


def _verify_shard(path: Path, shard: dict[str, Any], rows: list[dict[str, Any]] | None) -> str:
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
        with tarfile.open(path) as tar:
            inside = [(member.name, member.offset_data, member.size) for member in tar]
        if inside != [(f"{row['key']}.{row['member']}", row["offset"], row["length"]) for row in rows]:
            return f"its {len(inside)} members are not the {len(rows)} of the index; build again"
        if (len(rows), len({row["key"] for row in rows})) != (shard["members"], shard["groups"]):
            counted = f"{shard['groups']} groups and {shard['members']} members"
            return f"not the {counted} that shards.json counts; build again"
    return ""
