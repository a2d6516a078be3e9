"""The table of raw images: which files there are, what each is for, and which cannot be used and why."""

import hashlib
import itertools
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter, ValidationError

from pipeline.config import Frozen, parse_json
from pipeline.cpus import available_cpus
from pipeline.cuts import PART, minima
from pipeline.errors import UserError, printable
from pipeline.files import write_bytes
from pipeline.images import UnusableImageError, picture_size, pixel_limit, source_facts
from pipeline.layouts import layout
from pipeline.layouts.base import Count, Row
from pipeline.raw.leaks import leaks, perceptual_hash
from pipeline.raw.sources import is_remote, local_folder

MANIFEST = "manifest.json"  # says of which parts the table of images consists
PARTS = "images"  # the folder of the parts, beside it
MIN_SIDE = 16  # pixels; smaller images hold no patch and no SSIM window

SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("variant", pa.string()),
        ("split", pa.string()),
        ("key", pa.string()),
        ("role", pa.string()),  # gt | lq | mask | frame
        ("path", pa.string()),  # root as given, then the path below it
        ("part", pa.string()),  # which image of a file that holds several, as `pipeline.images.read_part` takes it
        ("scene", pa.string()),
        ("frame", pa.int32()),
        ("group", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("channels", pa.int32()),
        ("bit_depth", pa.int32()),
        ("sha256", pa.string()),  # of the file, or of the pixels of a part
        ("phash", pa.uint64()),  # see pipeline.raw.leaks
        ("profile", pa.string()),  # the embedded colour profile that was converted to sRGB; null where none was
        ("warning", pa.string()),  # what the decoder complained of in a file that is used
        ("reject_reason", pa.string()),
    ]
)


Licence = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]


class Source(Frozen):
    """One raw dataset, as `params.yaml` names it under `datasets`."""

    layout: str = Field(
        description="how its folders are laid out: a name of the published data sets, folder, pairs or scenes"
    )
    root: str = Field(description="its folder, relative to where memoir runs, or s3://bucket/prefix")
    variant: str | None = Field(
        None, description="the release, where a layout knows several that are not interchangeable"
    )
    allow_counts: bool = Field(False, description="take it though it holds more or fewer images than were published")
    licence: Licence | None = Field(None, description="of its images; null: what the layout knows of the publication")


@dataclass(frozen=True)
class Counts:
    """The counts of one dataset, files and parts of files: found = used + rejected.

    warned: the used ones with a warning. differences: how the counts differ from the published ones. licence: of the images,
    None where neither params.yaml nor the layout knows one.
    """

    dataset: str
    found: int
    used: int
    rejected: int
    differences: tuple[str, ...] = ()
    warned: int = 0
    licence: str | None = None


@dataclass(frozen=True)
class Ingested:
    """What `ingest` wrote. leaks: as `pipeline.raw.leaks.leaks` gives them. warnings: (path, warning) of used images."""

    counts: list[Counts]
    rejects: pa.Table
    leaks: pa.Table
    warnings: list[tuple[str, str]]


def ingest(sources: dict[str, Source], out: Path, *, allow_counts: bool = False) -> Ingested:
    """Read every image of the sources once; write out/manifest.json (of those used, as `write_manifest` does), and
    out/rejects.parquet and out/leaks.parquet.

    A pair with an unusable half is rejected; a target with many inputs keeps its usable inputs. The manifest records each
    dataset's layout, its licence and its differences from the published counts. allow_counts: accept these in all sources.
    Raises UserError for an empty or unusable dataset and for counts that differ and are not allowed; then nothing is
    written.
    """
    if not sources:
        raise UserError("no datasets to ingest; name one under `datasets` in params.yaml")
    used: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    counts: list[Counts] = []
    room = Room(pixel_limit())  # shared by all threads
    with ThreadPoolExecutor(available_cpus()) as pool:
        for name, source in sources.items():
            root = local_folder(source.root)
            raw = layout(source.layout, name, root, source.variant)
            records = list(pool.map(partial(_read, room=room), raw.rows()))
            if is_remote(source.root):
                for record in records:  # other machines read the bucket, not this one's copy of it
                    record["path"] = source.root.rstrip("/") + record["path"].removeprefix(root.as_posix())
            _reject_partners(records)
            good = [r for r in records if not r["reject_reason"]]
            bad = [r for r in records if r["reject_reason"]]
            if not good:
                first = f"; the first: {bad[0]['path']}: {bad[0]['reject_reason']}" if bad else ""
                raise UserError(f"{source.root}: no usable image in dataset {name} ({len(bad)} rejected{first})")
            differences = tuple(_differences(raw.published(), good, bad))
            if differences and not (allow_counts or source.allow_counts):
                raise UserError(
                    f"{source.root}: {'; '.join(differences)}. Mend the data set, or accept it: "
                    f"`memoir ingest --allow-counts`, or allow_counts: true beside {name} in params.yaml"
                )
            counts.append(
                Counts(
                    name,
                    len(records),
                    len(good),
                    len(bad),
                    differences,
                    sum(r["warning"] is not None for r in good),
                    source.licence or raw.licence,
                )
            )
            used += good
            rejects += bad
    datasets = {
        each.dataset: sources[each.dataset].model_dump(mode="json")
        | {"differences": each.differences, "licence": each.licence}
        for each in counts
    }
    manifest = pa.Table.from_pylist(used, SCHEMA)
    rejected, shared = pa.Table.from_pylist(rejects, SCHEMA), leaks(manifest)
    write_table(out / "rejects.parquet", rejected)
    write_table(out / "leaks.parquet", shared)
    write_manifest(out, manifest, datasets)
    warned = [(row["path"], row["warning"]) for row in used if row["warning"]]
    return Ingested(counts, rejected, shared, warned)


def _read(row: Row, room: "Room") -> dict[str, Any]:
    record: dict[str, Any] = {name: getattr(row, name, None) for name in SCHEMA.names}
    record |= {"path": row.path.as_posix()}
    if record["reject_reason"]:  # the reason may be a name that is no text
        record |= {name: printable(record[name]) for name in ("path", "scene", "group") if record[name]}
    if record["reject_reason"]:
        return record
    try:
        size = picture_size(row.path) if row.part in (None, "left", "right") else (0, 0)
        with room.taken(size[0] * size[1]):
            known = source_facts(row.path, row.part, bits=16)
            height, width, channels = known.pixels.shape
            if min(height, width) < MIN_SIDE:
                raise UnusableImageError(f"{width}x{height} pixels; the least is {MIN_SIDE}x{MIN_SIDE}")
            record["phash"] = perceptual_hash(known.pixels)
    except UnusableImageError as error:
        record["reject_reason"] = str(error)
        return record
    record |= {"width": width, "height": height, "channels": channels, "bit_depth": 8 * known.pixels.dtype.itemsize}
    return record | {"sha256": known.sha256, "profile": known.profile, "warning": "; ".join(known.warnings) or None}


class Room:
    """The pixels that may be in memory at a time. A request for more than is free waits; one for more than all runs alone."""

    def __init__(self, pixels: int) -> None:
        self.pixels, self.used, self.changed = pixels, 0, threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Take this many pixels while the block runs."""
        pixels = min(pixels, self.pixels)
        with self.changed:
            self.changed.wait_for(lambda: self.used + pixels <= self.pixels)
            self.used += pixels
        try:
            yield
        finally:
            with self.changed:
                self.used -= pixels
                self.changed.notify_all()


def _reject_partners(records: list[dict[str, Any]]) -> None:
    """Mark the partners of unusable images, and pairs of two sizes, as rejects in place. Frames have no partners."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if record["role"] != "frame":
            groups[record["split"], record["group"]].append(record)
    for group in groups.values():
        target = next((r for r in group if r["role"] == "gt" and not r["reject_reason"]), None)
        for record in group:
            if target is not None and not record["reject_reason"] and record["role"] != "gt":
                size, wanted = (f"{r['width']}x{r['height']}" for r in (record, target))
                if size != wanted:
                    record["reject_reason"] = f"{size} pixels, and its gt {Path(target['path']).name} has {wanted}"
        said = {
            (record["key"], record["role"]): f"{Path(record['path']).name}: {record['reject_reason']}"
            for record in group
            if record["reject_reason"]
        }
        inputs = {r["key"] for r in group if r["role"] == "lq"}
        for record in group:
            whys = [why for (key, role), why in said.items() if role == "gt" or key == record["key"]]
            if record["role"] == "gt" and inputs and inputs <= {key for key, _ in said}:
                whys = list(said.values())
            if whys and not record["reject_reason"]:
                record["reject_reason"] = f"its partner cannot be used ({whys[0]})"


def _differences(published: tuple[Count, ...], good: list[dict[str, Any]], bad: list[dict[str, Any]]) -> Iterator[str]:
    """A phrase for each split and subset that exists and does not have the published number of images."""
    number = Counter((r["split"], r["role"], scene) for r in good for scene in {r["scene"], None})
    for count in published:
        found = number[count.split, count.role, count.subset]
        lost = [r for r in bad if r["split"] == count.split and count.subset in (None, r["scene"])]
        if found == count.number or not (found or lost):
            continue
        # if the input of a pair is missing, its target is among the rejects
        lost = [r for r in lost if r["role"] == count.role] or lost
        if found in count.causes:
            cause = count.causes[found]
        elif found > count.number:
            cause = "files that were not published, such as copies or another split's images"
        elif lost:
            cause = f"{len(lost):,} rejected, the first: {lost[0]['path']}: {lost[0]['reject_reason']}"
        else:
            cause = "files are missing: an unfinished download, or another release"
        where = f"{count.split}/{count.subset}" if count.subset else count.split
        yield f"{where} has {found:,} {count.role} images, {abs(found - count.number):,} " + (
            f"{'fewer' if found < count.number else 'more'} than the {count.number:,} published ({cause})"
        )


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file atomically; equal tables give equal bytes under one version of pyarrow."""
    write_bytes(path, _parquet(table))


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


class Part(Frozen):
    """Some rows of the manifest: a file of PARTS, named by the start of its sha256."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rows: int = Field(ge=0)

    @property
    def file(self) -> str:
        return f"{self.sha256[:16]}.parquet"


class Contents(Frozen):
    """What manifest.json says. parts: in order, those of the table."""

    datasets: dict[str, dict[str, Any]] = Field(description="layout, root and differences from the published counts")
    parts: tuple[Part, ...] = Field(min_length=1)


def write_manifest(out: Path, table: pa.Table, datasets: dict[str, Any]) -> None:
    """Write the table of images that are used, in parts that end at images with a least sha256, and out/manifest.json last.

    So an edit of the images changes the parts near it, and `dvc push` moves no others. Files of older parts are removed.
    """
    hashes = [int(value[:16], 16) for value in table["sha256"].to_pylist()]
    ends = [cut + 1 for cut in minima(hashes, range(1, len(hashes) + 1), PART // 2)]
    parts = []
    for begin, end in itertools.pairwise([0, *ends, len(table)]):
        data = _parquet(table.slice(begin, end - begin))
        part = Part(sha256=hashlib.sha256(data).hexdigest(), rows=end - begin)
        write_bytes(out / PARTS / part.file, data)
        parts.append(part)
    contents = Contents(datasets=datasets, parts=tuple(parts))
    write_bytes(out / MANIFEST, (contents.model_dump_json(indent=1) + "\n").encode())
    current = {part.file for part in parts}
    for path in (out / PARTS).iterdir():
        if path.name not in current:
            path.unlink()


def read_manifest(path: Path) -> pa.Table:
    """The manifest that `ingest` wrote, with its datasets as metadata. path: of its manifest.json. Raises UserError if there is none, or it is damaged."""
    try:
        contents = Contents.model_validate(parse_json(path.read_bytes(), str(path)))
    except FileNotFoundError:
        raise UserError(f"{path}: no manifest; run `memoir ingest` first") from None
    except (IsADirectoryError, UserError, ValidationError):
        raise UserError(f"{path}: not a manifest, or a damaged one; run `memoir ingest` again") from None
    table = pa.concat_tables(_read_part(path.parent / PARTS / part.file, part) for part in contents.parts)
    return table.replace_schema_metadata({"memoir": json.dumps(contents.datasets)})


def _read_part(path: Path, part: Part) -> pa.Table:
    table = None
    with suppress(FileNotFoundError, pa.ArrowException):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == part.sha256:
            with pq.ParquetFile(pa.BufferReader(data)) as file:
                table = file.read()
    if table is None or not table.schema.equals(SCHEMA) or table["reject_reason"].null_count != part.rows:
        raise UserError(f"{path}: missing, or not a part of the manifest; run `memoir ingest` again, or `dvc pull`")
    return table


def licences(manifest: pa.Table) -> dict[str, str | None]:
    """The licence of each dataset of a manifest, None where it is not known; a table without this metadata names none."""
    try:
        datasets = parse_json((manifest.schema.metadata or {})[b"memoir"], "manifest.json")
        found = {name: each.get("licence") for name, each in datasets.items()}
        return TypeAdapter(dict[str, Licence | None]).validate_python(found)
    except KeyError:
        return {}
    except (UserError, ValueError, AttributeError):
        raise UserError("manifest.json: its list of datasets is damaged; run `memoir ingest` again") from None
