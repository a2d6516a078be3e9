"""How the data of two git revisions differ: images, shards, bytes to move, and leaks."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, ValidationError

from pipeline.config import parse_json
from pipeline.dvc_objects import DvcFolder
from pipeline.errors import UserError
from pipeline.raw.leaks import read_leaks
from pipeline.raw.manifest import MANIFEST as TABLE
from pipeline.raw.manifest import PARTS, read_manifest
from pipeline.revisions.revision import Revision, cache_and_remote
from pipeline.storage import Folder, Storage

DATA, MANIFEST, RAW = "data", "data/manifest", "data/listing"  # where dvc.yaml has what it makes
LISTING = 2**28  # the most bytes of a shards.json
IMAGE = ("dataset", "split", "path", "part")  # what names an image


class Shard(BaseModel):
    """What is compared of a shard."""

    split: str
    name: str
    bytes: int = Field(ge=0, le=2**50)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Built(BaseModel):
    """What is compared of a built dataset: shards.json of any version of memoir has it."""

    versions: dict[str, str] = {}
    shards: tuple[Shard, ...]


class Side:
    """The data of a revision, or of the working tree.

    what: its name, for messages. commit: its sha1; None for the working tree.
    """

    def __init__(self, revision: str | None) -> None:
        """revision: git's; None: the working tree. Raises UserError as `Revision` and `cache_and_remote`."""
        self.what = revision or "the working tree"
        self.revision = Revision(revision) if revision else None
        self.commit = self.revision.commit if self.revision else None
        self.places: list[Storage] = []
        if revision:
            cache, remote = cache_and_remote()
            self.places = [cache, *([remote] if remote else [])]

    def folder(self, path: str) -> Storage:
        """A folder that a stage made. Raises UserError if there is none."""
        if self.revision:
            return self.revision.folder(path, self.places)
        if not Path(path).is_dir():
            raise UserError(f"{path}: not here; `dvc pull {path}`, or `dvc repro`")
        return Folder(path, Path(path))

    def tasks(self) -> list[str]:
        """The tasks that are built, by name."""
        if self.revision:
            paths = [Path(out) for out, md5 in self.revision.outs.items() if md5.endswith(".dir")]
        else:
            paths = [path.parent for path in Path(DATA).glob("*/shards.json")]
        return sorted(path.name for path in paths if path.parent == Path(DATA) and str(path) not in (MANIFEST, RAW))

    @contextmanager
    def tables(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """The manifest, and the leaks. Raises UserError if a file of theirs is missing or damaged."""
        place = self.folder(MANIFEST)
        if isinstance(place, Folder):
            yield read_manifest(place.root / TABLE), read_leaks(place.root / "leaks.parquet")
            return
        with TemporaryDirectory(prefix="memoir-diff-") as copy:
            try:
                for name in (*place.names(TABLE), *place.names(f"{PARTS}/"), *place.names("leaks")):
                    place.download(name, Path(copy, name))
                yield read_manifest(Path(copy, TABLE)), read_leaks(Path(copy, "leaks.parquet"))
            except UserError as error:
                raise UserError(str(error).replace(copy, f"{self.what}: {MANIFEST}")) from None

    def built(self, task: str) -> Built:
        """What shards.json says, with the versions that a file beside it has. Raises UserError if it is missing or damaged."""
        place = self.folder(f"{DATA}/{task}")

        def read(name: str) -> Any:
            data = place.read(name, LISTING)
            return parse_json(data, f"{self.what}: {DATA}/{task}/{name}")

        value = read("shards.json")
        try:
            if isinstance(value, dict) and "versions.json" in place.names("versions.json"):
                value = value | {"versions": read("versions.json")}
            return Built.model_validate(value)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise UserError(f"{self.what}: {DATA}/{task}/shards.json: damaged ({where}); build again") from None

    def files(self, path: str) -> dict[str, tuple[str, int]]:
        """The md5 and the bytes of each file of a folder that is no shard, by its path."""
        place = self.folder(path)
        found = {}
        for name in (name for name in place.names() if not name.endswith(".tar")):
            if isinstance(place, DvcFolder):
                found[f"{path}/{name}"] = place.files[name], place.size(name)
            else:
                file = Path(path, name)
                with file.open("rb") as contents:
                    md5 = hashlib.file_digest(contents, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
                found[f"{path}/{name}"] = md5, file.stat().st_size
        return found


def diff(a: str, b: str | None = None) -> dict[str, Any]:
    """How the data of revision `b` differ from those of revision `a`. b: None: the working tree.

    Returns {"a", "b": {"name", "commit"}, "images": for each data set and split that differs {"dataset", "split", "added",
    "removed", "changed": paths, sorted}, "tasks": for each task that differs {"task", "shards": {"added", "removed",
    "kept"}, "bytes": of the added shards, "versions": [of a, of b] where they differ, else None, "absent": shards of the working
    tree that are not on the disk}, "bytes": {"shards", "tables"}: what somebody who has all of `a` must fetch for `b`, "leaks":
    the rows of leaks.parquet that `a` lacks}. Raises UserError for an unknown revision, one without a manifest, and
    one whose data are neither in DVC's cache nor in its remote.
    """
    one, other = Side(a), Side(b)
    with one.tables() as (before, leaked), other.tables() as (after, leaks):
        images = _images(before, after)
        known = leaked.to_pylist()
        fresh = [row for row in leaks.to_pylist() if row not in known]
    built = [{task: side.built(task) for task in side.tasks()} for side in (one, other)]
    held = {shard.sha256 for each in built[0].values() for shard in each.shards}
    tasks: list[dict[str, Any]] = []
    lacking: dict[str, int] = {}
    for task in sorted(built[0].keys() | built[1].keys()):
        was, now = (each.get(task) for each in built)
        found = _task(task, was, now, held, None if b else Path(DATA, task))
        if found:
            tasks.append(found)
        lacking |= {shard.sha256: shard.bytes for shard in (now.shards if now else ()) if shard.sha256 not in held}
    folders = [[MANIFEST, *(f"{DATA}/{task}" for task in each)] for each in built]
    tables = [
        {name: file for path in paths for name, file in side.files(path).items()}
        for side, paths in zip((one, other), folders, strict=True)
    ]
    had = {md5 for md5, _ in tables[0].values()}
    moved = {md5: nbytes for md5, nbytes in tables[1].values() if md5 not in had}
    return {
        "a": {"name": one.what, "commit": one.commit},
        "b": {"name": other.what, "commit": other.commit},
        "images": images,
        "tasks": tasks,
        "bytes": {"shards": sum(lacking.values()), "tables": sum(moved.values())},
        "leaks": fresh,
    }


def _images(before: pa.Table, after: pa.Table) -> list[dict[str, Any]]:
    """The images that differ, by data set and split."""
    named = []
    for table in (before, after):
        columns = [pc.fill_null(table[name], "") for name in IMAGE]
        named.append(pa.Table.from_arrays([*columns, table["sha256"]], [*IMAGE, "sha256"]))
    joined = named[0].join(named[1], list(IMAGE), join_type="full outer", right_suffix="_after")
    same = pc.fill_null(pc.equal(joined["sha256"], joined["sha256_after"]), False)
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in joined.filter(pc.invert(same)).sort_by([(name, "ascending") for name in IMAGE]).to_pylist():
        kind = "added" if row["sha256"] is None else "removed" if row["sha256_after"] is None else "changed"
        place = found.setdefault((row["dataset"], row["split"]), {"added": [], "removed": [], "changed": []})
        place[kind].append(f"{row['path']}:{row['part']}" if row["part"] else row["path"])
    return [{"dataset": dataset, "split": split, **kinds} for (dataset, split), kinds in found.items()]


def _task(task: str, was: Built | None, now: Built | None, held: set[str], here: Path | None) -> dict[str, Any] | None:
    """How a task's shards differ; None if they do not. held: sha256 of all shards of a. here: the folder of the working tree."""
    old, new = ({shard.sha256: shard for shard in (each.shards if each else ())} for each in (was, now))
    absent = 0
    if here and now:
        absent = sum(not (here / shard.split / shard.name).is_file() for shard in new.values())
    versions = [was.versions, now.versions] if was and now and was.versions != now.versions else None
    if old.keys() == new.keys() and not absent and versions is None:
        return None
    shards = {
        "added": len(new.keys() - old.keys()),
        "removed": len(old.keys() - new.keys()),
        "kept": len(old.keys() & new.keys()),
    }
    nbytes = sum(shard.bytes for sha256, shard in new.items() if sha256 not in held)
    return {"task": task, "shards": shards, "bytes": nbytes, "versions": versions, "absent": absent}
