"""The table of raw images: which files there are, what each is for, and which cannot be used and why."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipeline.config import Frozen
from pipeline.errors import UserError
from pipeline.images import UnusableImageError, read_image, write_bytes
from pipeline.layouts import layout
from pipeline.layouts.base import Row

MIN_SIDE = 16  # pixels; smaller images hold no patch and no SSIM window

SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("variant", pa.string()),
        ("split", pa.string()),
        ("key", pa.string()),
        ("role", pa.string()),  # gt | lq | mask | frame
        ("path", pa.string()),  # root as given, then the path below it
        ("scene", pa.string()),
        ("frame", pa.int32()),
        ("group", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("channels", pa.int32()),
        ("bit_depth", pa.int32()),
        ("sha256", pa.string()),
        ("reject_reason", pa.string()),
    ]
)


class Source(Frozen):
    """One raw dataset, as `params.yaml` names it under `datasets`."""

    layout: str
    root: str = Field(description="its folder; relative to where memoir runs")
    variant: str | None = None


@dataclass(frozen=True)
class Counts:
    """Files of one dataset: found = used + rejected."""

    dataset: str
    found: int
    used: int
    rejected: int


def ingest(sources: dict[str, Source], out: Path) -> tuple[list[Counts], pa.Table]:
    """Read every image of the sources once; write out/manifest.parquet (used) and out/rejects.parquet.

    A group with a rejected member is rejected whole: a pair without its target is no pair.
    Returns the counts of each dataset and the table of rejects. Raises UserError for an empty or unusable dataset; then
    nothing is written.
    """
    if not sources:
        raise UserError("no datasets to ingest; name one under `datasets` in params.yaml")
    used: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    counts: list[Counts] = []
    with ThreadPoolExecutor() as pool:
        for name, source in sources.items():
            rows = list(layout(source.layout, name, Path(source.root), source.variant).rows())
            records = list(pool.map(_read, rows))
            broken: dict[tuple[str, str], str] = {}
            for record in records:
                if record["reject_reason"]:
                    why = f"{Path(record['path']).name}: {record['reject_reason']}"
                    broken.setdefault((record["split"], record["group"]), why)
            for record in records:
                why = broken.get((record["split"], record["group"]), "")
                if why and not record["reject_reason"] and record["role"] != "frame":
                    record["reject_reason"] = f"its partner cannot be used ({why})"
            good = [r for r in records if not r["reject_reason"]]
            bad = [r for r in records if r["reject_reason"]]
            if not good:
                first = f"; the first: {bad[0]['path']}: {bad[0]['reject_reason']}" if bad else ""
                raise UserError(f"{source.root}: no usable image in dataset {name} ({len(bad)} rejected{first})")
            counts.append(Counts(name, len(records), len(good), len(bad)))
            used += good
            rejects += bad
    rejected = pa.Table.from_pylist(rejects, SCHEMA)
    write_table(out / "rejects.parquet", rejected)
    write_table(out / "manifest.parquet", pa.Table.from_pylist(used, SCHEMA))
    return counts, rejected


def _read(row: Row) -> dict[str, Any]:
    record: dict[str, Any] = {name: getattr(row, name, None) for name in SCHEMA.names}
    record["path"] = row.path.as_posix()
    if record["reject_reason"]:
        return record
    try:
        pixels, data = read_image(row.path)
        height, width, channels = pixels.shape
        if min(height, width) < MIN_SIDE:
            raise UnusableImageError(f"{width}x{height} pixels; the least is {MIN_SIDE}x{MIN_SIDE}")
    except UnusableImageError as error:
        record["reject_reason"] = str(error)
        return record
    record |= {"width": width, "height": height, "channels": channels, "bit_depth": 8}
    record["sha256"] = hashlib.sha256(data).hexdigest()
    return record


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file atomically; equal tables give equal bytes under one version of pyarrow."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_bytes(path, sink.getvalue().to_pybytes())


def read_manifest(path: Path) -> pa.Table:
    """The manifest that `ingest` wrote. Raises UserError if there is none, or another file in its place."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: no manifest; run `memoir ingest` first") from None
    except PermissionError:
        raise
    except (pa.ArrowException, OSError):
        table = None
    if table is None or not table.schema.equals(SCHEMA) or table["reject_reason"].null_count < len(table):
        raise UserError(f"{path}: not a manifest, or a damaged one; run `memoir ingest` again")
    return table
