"""Shards that exist already, by their recipes: in .cache/shards, in what an earlier build left, and in a shared store.

.cache/shards/<name>.tar              built shards, by content; they survive the stage's output
.cache/shards/recipes/<recipe>.json   the shard of each recipe, with its rows of the index
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from pipeline.config import parse_json
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.shards.format import (
    PART_BYTES,
    RECIPES,
    VERSIONS,
    Shard,
    file_sha256,
    parts,
    read_listing,
    read_part,
    table_file,
    verify_shard,
)
from pipeline.shards.plan import ShardPlan
from pipeline.storage import Storage
from pipeline.tables import INDEX_SCHEMA, check_index

STORE = Path(".cache/shards")
ENTRY_BYTES = 2**30  # the most bytes of a recipe's entry in a shared store: a row of the index takes some 300
DOWNLOADS = 8  # downloads at a time from a shared store

Find = Callable[[str], Path | None]  # the file of this name in a built dataset, if it is there


@contextmanager
def claimed() -> Iterator[None]:
    """Let other builds know that this one works in the store, and remove what killed ones left unfinished there.

    The lock ends with its process: a build that gets it exclusively knows that all temporary files are of dead builds.
    """
    STORE.mkdir(parents=True, exist_ok=True)
    with (STORE / ".lock").open("a") as lock:
        with suppress(OSError):  # another build runs, or the file system has no locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for leftover in (*STORE.glob(".*.tmp"), *STORE.glob("recipes/.*.tmp")):
                leftover.unlink(missing_ok=True)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def remembered(recipe: str) -> str:
    """The name of a recipe's entry in a store of shards."""
    return f"recipes/{recipe}.json"


def entry(recipe: str) -> dict[str, Any]:
    """What the store remembers of a recipe: {"name", "bytes", "sha256", "groups"} of the shard, and "rows" of the index.

    Raises FileNotFoundError, and UserError for an entry that no build wrote.
    """
    return _entry(STORE / remembered(recipe))


def _entry(path: Path) -> dict[str, Any]:
    """As `entry`, from a file that may come from a shared store."""
    found = parse_json(path.read_bytes(), str(path))
    try:
        rows, groups = found.pop("rows"), found.pop("groups")
        shard = Shard.model_validate(found | {"split": "train", "groups": groups, "members": len(rows)})
        if not all(isinstance(row, dict) and row.keys() <= set(INDEX_SCHEMA.names) for row in rows):
            raise ValueError("a row of another kind")
        table = pa.Table.from_pylist([row | {"split": "train"} for row in rows], INDEX_SCHEMA)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, pa.ArrowException):
        raise UserError(f"{path}: not what a build writes; remove it, and build again") from None
    codec = "png" if any(row["member"].endswith(".png") for row in rows if row.get("member")) else "raw"
    bits = 16 if any(row.get("dtype") == "uint16" for row in rows) else 8
    check_index(table, {f"train/{shard.name}": shard.bytes}, codec, bits, str(path))
    if pc.count_distinct(table["key"]).as_py() != groups:
        raise UserError(f"{path}: its rows are not of {groups} groups; remove it, and build again")
    return shard.model_dump(include={"name", "bytes", "sha256", "groups"}) | {"rows": rows}


def whole(recipe: str) -> bool:
    """Whether the store has this recipe's shard, undamaged."""
    try:
        found = entry(recipe)
        path = STORE / found["name"]
        return path.stat().st_size == found["bytes"] and file_sha256(path) == found["sha256"]
    except (OSError, UserError):
        return False


def stored(
    shards: dict[str, ShardPlan], out: Path, shared: Storage | None, versions: dict[str, str]
) -> tuple[set[str], str | None]:
    """Bring shards that are elsewhere into the store; returns which recipes have whole shards there then.

    shards: those that are wanted, by recipe. out: where an earlier build may have been left, or pulled to. shared: a store where other machines may have put shards.
    Returns also how the versions of libraries with which the earlier build was made differ from `versions`, in which case its
    shards have other recipes; None: they do not.
    """
    found = {recipe for recipe in shards if whole(recipe)}
    others = None
    for find in _earlier(out):
        if found.issuperset(shards):
            break
        try:
            listing = read_listing(path.read_bytes(), str(out)) if (path := find("shards.json")) else None
            recipes, by = beside(find, RECIPES), beside(find, VERSIONS)
        except (OSError, UserError):  # of an older version, for instance: it is built anew
            continue
        if listing:
            found |= _taken({recipe: shards[recipe] for recipe in shards.keys() - found}, find, listing, recipes)
            others = others or _differing(by, versions)
    if shared and not found.issuperset(shards):
        there = set(shared.names("recipes/"))
        found |= download([each for each in shards if each not in found and remembered(each) in there], shared)
    return found, others


def beside(find: Find, name: str) -> dict[str, str]:
    """The texts by name of a file beside shards.json. Raises OSError and UserError if there is none, or another in its place."""
    path = find(name)
    if path is None:
        raise FileNotFoundError(name)
    try:
        return TypeAdapter(dict[str, str]).validate_python(parse_json(path.read_bytes(), str(path)), strict=True)
    except ValidationError:
        raise UserError(f"{path}: not what a build writes; build again") from None


def _differing(there: dict[str, str], here: dict[str, str]) -> str | None:
    names = sorted(name for name in there.keys() | here if there.get(name) != here.get(name))
    return ", ".join(f"{name} {there.get(name)} there and {here.get(name)} here" for name in names) or None


def download(recipes: list[str], shared: Storage) -> set[str]:
    """Copy shards of a shared store into this machine's; returns the recipes that are then whole.

    The store may be anybody's: a recipe is remembered once its rows are all members of its shard, as they are in it.
    """

    def fetch(recipe: str) -> bool:
        arrived = STORE / "recipes" / f".{os.getpid()}-{os.urandom(4).hex()}.tmp"
        try:
            shared.download(remembered(recipe), arrived, limit=ENTRY_BYTES)
            found = _entry(arrived)
            path, shard = STORE / found["name"], found | {"members": len(found["rows"])}
            rows = [dict.fromkeys(INDEX_SCHEMA.names) | row for row in found["rows"]]
            if verify_shard(path, shard, rows):
                shared.download(found["name"], path, limit=found["bytes"])
                if verify_shard(path, shard, rows):
                    return False
            arrived.replace(STORE / remembered(recipe))
        except (FileNotFoundError, UserError):
            return False
        finally:
            arrived.unlink(missing_ok=True)
        return True

    with ThreadPoolExecutor(DOWNLOADS) as pool:
        return {recipe for recipe, there in zip(recipes, pool.map(fetch, recipes), strict=True) if there}


def _earlier(out: Path) -> Iterator[Find]:
    """What `out` holds, and what it held when DVC last saw it."""
    if out.is_dir():
        yield lambda name: out / name
    if pulled := _in_dvc_cache(out):
        yield pulled


def same_groups(shard: ShardPlan, rows: list[dict[str, Any]]) -> bool:
    """Whether these rows of an index are of the groups that the plan puts into the shard, in their order."""
    return bool(pc.unique(shard.files["group"]).to_pylist() == list(dict.fromkeys(row["key"] for row in rows)))


def _taken(wanted: dict[str, ShardPlan], find: Find, listing: dict[str, Any], recipes: dict[str, str]) -> set[str]:
    """Link shards of a built dataset into the store, each with its recipe; returns the recipes that are then there.

    recipes: by <split>/<name> of the shard. The dataset may be anybody's: what is not whole, or of other groups, is not taken, and is encoded again.
    """
    taken: set[str] = set()
    for part, shards in parts(listing):
        named = [(shard, f"{shard['split']}/{shard['name']}") for shard in shards]
        chosen = [(shard, name, recipe) for shard, name in named if (recipe := recipes.get(name)) in wanted]
        table = find(table_file("index", part["index"]))
        try:
            if not chosen or table is None or table.stat().st_size > PART_BYTES:
                continue
            index = read_part(table, "index", part, shards, listing, str(table))
        except (OSError, UserError):
            continue
        for shard, name, recipe in chosen:
            path = find(name)
            of_it = pc.and_(pc.equal(index["split"], shard["split"]), pc.equal(index["shard"], shard["name"]))
            rows = index.filter(of_it).to_pylist()
            with suppress(OSError):
                if path and same_groups(wanted[recipe], rows) and not verify_shard(path, shard, rows):
                    _put(path.resolve(), recipe, shard, rows)
                    taken.add(recipe)
    return taken


def _put(path: Path, recipe: str, shard: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Link a shard into the store, and remember its recipe. rows: of the index, with nulls."""
    temporary = STORE / f".{os.getpid()}-{os.urandom(4).hex()}.tmp"
    try:
        try:
            os.link(path, temporary)
        except OSError:  # it is another file system, or one without hard links
            shutil.copyfile(path, temporary)
        temporary.replace(STORE / shard["name"])
    finally:
        temporary.unlink(missing_ok=True)
    kept = [{name: value for name, value in row.items() if value is not None and name != "split"} for row in rows]
    held = {name: shard[name] for name in ("groups", "name", "bytes", "sha256")}
    write_bytes(STORE / remembered(recipe), json.dumps(held | {"rows": kept}).encode())


def _in_dvc_cache(out: Path) -> Find | None:
    """The files of a dataset as DVC's cache has them; None: DVC does not know it, or it was not pulled.

    `dvc repro` removes a stage's output before it runs the stage, so that only the cache has what the last build left.
    """
    here = Path.cwd()
    if not any((folder / ".dvc").is_dir() for folder in (here, *here.parents)):
        return None
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            for each in repo.index.outs:
                if each.fs_path == str(out.absolute()) and each.use_cache and each.is_dir_checksum:
                    cache, tree = each.cache, each.get_obj()
                    files = {"/".join(key): str(found.value) for key, _, found in tree or ()}
                    sound = {name: oid for name, oid in files.items() if re.fullmatch(r"[0-9a-f]{32}", oid)}
                    paths = {name: Path(cache.oid_to_path(oid)) for name, oid in sound.items()}
                    return paths.get if paths else None
    except DvcException:  # what is wrong with its files, it says itself
        return None
    return None
