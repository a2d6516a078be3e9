"""What nobody names any more: in DVC's remote, in the shard store, and among the runs and half-published versions of a store.

What is named: by the .dvc files, dvc.lock and pointers of all revisions, by the working copies, by published versions, by
datasets that were sent to a cluster, and by the run cache of DVC. What is younger than the grace period is kept in any case: it may
be of a push, a build or a training that goes on, or of a branch that nobody has fetched. What is not known is never deleted.
"""

import itertools
import re
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from jobs.documents import SMALL, Document, Name, Sha256, read_document
from jobs.restoring.checkpoint import SUMS as VERSION_SUMS
from jobs.sharing import repo
from jobs.sharing.probe import MARK
from jobs.sharing.remote import OBJECT, Remote, cache, remote
from jobs.sharing.tracked import Named, Reader, files, named, outs
from jobs.training.resume import SUMS as CHECKPOINT_SUMS
from pipeline.errors import UserError, some
from pipeline.params import FILE, in_project, read_params
from pipeline.shards.format import TABLES, table_file
from pipeline.storage import Entry, Storage, storage

DAY = 86400
AT_A_TIME = 8  # files that are read
OBJECTS, SHARDS, VERSIONS, RUNS = "objects of DVC", "built shards", "versions of models", "runs"
POINTER = re.compile(r"(?:.*/)?runs/[^/]+/checkpoint\.json")
RECIPE = re.compile(r"recipes/[0-9a-f]{64}\.json")
SHARD = re.compile(r"[0-9a-f]{16}\.tar")
TABLE = re.compile(rf"({'|'.join(TABLES)})/[0-9a-f]{{16}}\.parquet")  # which `memoir submit` sends beside the shards
SHARD_OF_RECIPE = re.compile(rb'\{"groups": \d+, "name": "([0-9a-f]{16}\.tar)", ')  # as a build writes it
RUN_CACHE = re.compile(r"runs/[0-9a-f]{2}/[0-9a-f]{64}/[0-9a-f]{64}")
LISTING = re.compile(r"data/[^/]+/[^/]+/shards\.json")
VERSION = re.compile(r"models/[^/]+/[0-9a-f]{12}/[^/]+")
OF_MODELS = re.compile(r"models/([^/]+/)?[^/]+\.(json|txt)")
LATER = "of a later or an earlier version of memoir"


class Provenance(Document):
    """What provenance.json says of the run that a version came from."""

    run: Name | None = None


class Pointed(Document):
    """What every version of checkpoint.json says: the run."""

    run: Name


class Kind(NamedTuple):
    """A line of the table. garbage: in the order in which it is deleted. kept, young: of what stays, that is named, or young."""

    name: str
    store: Storage
    garbage: list[Entry]
    kept: list[Entry]
    young: list[Entry]


class Found(NamedTuple):
    """What there is. unknown: by URI of the place, what memoir did not write. notes: what could not be judged, and is kept."""

    kinds: list[Kind]
    unknown: dict[str, list[Entry]]
    notes: list[str]
    revisions: int


class ListedShard(Document):
    """A shard in a shards.json of any version of memoir."""

    name: str = Field(pattern=r"^[0-9a-f]{16}\.tar$")


class ListedPart(Document):
    """The tables of some shards in a shards.json; older ones have none."""

    index: Sha256 | None = None
    pairs: Sha256 | None = None
    negatives: Sha256 | None = None


class Listed(Document):
    """What is read of a shards.json, which may be an old commit's: the names of its shards, and their tables."""

    shards: list[ListedShard] = Field(min_length=1)
    parts: tuple[ListedPart, ...] = ()


class _Named:
    """What all revisions name. objects: MD5s. shards (and tables of their rows), runs: names. lacking: pointers and listings that nobody has."""

    def __init__(self) -> None:
        self.objects: set[str] = set()
        self.shards: set[str] = set()
        self.runs: set[str] = set()
        self.lacking: dict[str, list[str]] = defaultdict(list)


def find_garbage(place: Path, name: str | None, *, also: list[Path], days: float, tips: bool) -> Found:
    """Look through DVC's remote, the shards and the store of a repository; nothing is deleted.

    name: of the remote; None: the default one. also: other clones, whose unpushed commits and files count too. days: what was
    written in so many last ones stays. tips: what only commits behind the tips of branches, tags and experiments name counts as
    named by nobody. Raises UserError if a remote repository of git has commits that are not here.
    """
    repository = repo.top(place)
    params = read_params(repository / FILE)
    where = remote(repository, name)
    store = storage(in_project(params.store))
    shards = storage(in_project(params.shards) if params.shards else f"{store.uri}/shards")
    clones = [repository, *(repo.top(each) for each in also)]
    entries = {each.uri: each.entries() for each in (where.store, store, shards)}
    reader = Reader(where.store, cache(repository))
    needed, revisions = _Named(), 0
    for clone in clones:
        commits = repo.revisions(clone, experiments=True) | repo.unfetched(clone)
        copies = repo.working_copies(clone)
        revisions += len(commits)
        found = [each for each in named(clone, None, copies, commits, history=not tips) if isinstance(each, Named)]
        _add(needed, found, reader if clone == repository else Reader(where.store, cache(clone)))
        for copy in copies:
            _add_working_copy(needed, copy)
    _add_run_cache(needed, where.store, entries[where.store.uri], reader)
    limit = time.time() - days * DAY
    _add_store(needed, store, entries[store.uri])
    beside = {f"{each.uri}/" for each in (where.store, shards) if each.uri != store.uri}
    of_store = [e for e in entries[store.uri] if not any(f"{store.uri}/{e.name}".startswith(each) for each in beside)]
    unknown: dict[str, list[Entry]] = {}
    kinds = [
        _objects(where, entries[where.store.uri], needed, reader, limit, unknown),
        _shards(shards, entries[shards.uri], needed, limit, unknown),
        *_of_store(store, of_store, needed, limit, unknown),
    ]
    return Found(kinds, {uri: found for uri, found in unknown.items() if found}, _notes(needed, tips), revisions)


def delete(found: Found) -> Iterator[tuple[str, int]]:
    """Delete the garbage; yields the name of each kind and how many files of it are gone. Raises UserError without the right."""
    for kind in found.kinds:
        for _, entries in itertools.groupby(kind.garbage, key=_rank):
            with ThreadPoolExecutor(AT_A_TIME) as pool:
                list(pool.map(kind.store.remove, [entry.name for entry in entries]))
        yield kind.name, len(kind.garbage)


def _rank(entry: Entry) -> int:
    """What is deleted first, so that what is left of a killed deletion is never taken for whole.

    The list of a folder's files, without which DVC looks for each; the recipe of a shard, without which it is built; done.json,
    without which a run is continued; then the sums of a checkpoint.
    """
    if entry.name.endswith(f"/{CHECKPOINT_SUMS}"):
        return 1
    return 0 if entry.name.endswith((".dir", "/done.json")) or RECIPE.fullmatch(entry.name) else 2


# what is named


def _add(needed: _Named, outputs: list[Named], reader: Reader) -> None:
    """Add the objects of these outputs, and what the pointers and listings among them name."""
    needed.objects |= files(outputs, reader).keys()
    for out in outputs:
        if POINTER.fullmatch(out.path):
            _add_pointer(needed, reader.small(out.md5), out)
        if not out.md5.endswith(".dir"):
            continue
        children = reader.folder(out.md5)
        if children is None:
            needed.lacking["objects"].append(f"{out.path}/ ({out.revision or 'here'})")
            needed.lacking["shards"].append(f"{out.path}/ ({out.revision or 'here'})")
        for name, md5 in (children or {}).items():
            if name == "shards.json":
                _add_listing(needed, reader.small(md5), f"{out.path}/shards.json ({out.revision or 'here'})")
            elif POINTER.fullmatch(f"{out.path}/{name}"):
                _add_pointer(needed, reader.small(md5), out)


def _add_pointer(needed: _Named, data: bytes | None, out: Named) -> None:
    where = f"{out.path} ({out.revision or 'here'})"
    try:
        if data is None:
            raise UserError("")
        needed.runs.add(read_document(data, Pointed, where, LATER)["run"])
    except UserError:
        needed.lacking["runs"].append(where)


def _add_listing(needed: _Named, data: bytes | None, where: str) -> None:
    try:
        if data is None:
            raise UserError("")
        listing = read_document(data, Listed, where, LATER)
        needed.shards |= {shard["name"] for shard in listing["shards"]}
        needed.shards |= {
            table_file(table, part[table]) for part in listing.get("parts", ()) for table in TABLES if part.get(table)
        }
    except UserError:
        needed.lacking["shards"].append(where)


def _add_working_copy(needed: _Named, copy: Path) -> None:
    """Pointers and datasets that lie in a working copy, whether DVC knows them or not."""
    for path in copy.glob("runs/*/checkpoint.json"):
        _add_pointer(needed, path.read_bytes(), Named("", str(path), None, ""))
    for path in copy.glob("data/*/shards.json"):
        _add_listing(needed, path.read_bytes(), str(path))


def _add_run_cache(needed: _Named, store: Storage, held: list[Entry], reader: Reader) -> None:
    """The outputs that the entries of a run cache name, which `dvc push --run-cache` has sent."""
    for entry in held:
        if RUN_CACHE.fullmatch(entry.name):
            where = f"{store.uri}/{entry.name}"
            found = [
                out
                for out in outs(store.read(entry.name, SMALL), entry.name, "run cache", None)
                if isinstance(out, Named)
            ]
            if not found:
                raise UserError(f"{where}: not an entry of DVC's run cache; remove it, and try again")
            _add(needed, found, reader)


def _add_store(needed: _Named, store: Storage, held: list[Entry]) -> None:
    """The runs that published versions came from, and the shards of datasets that were sent to a cluster."""
    for entry in held:
        where = f"{store.uri}/{entry.name}"
        if VERSION.fullmatch(entry.name) and entry.name.endswith("/provenance.json"):
            try:
                run = read_document(store.read(entry.name, SMALL), Provenance, where, LATER).get("run")
            except UserError:
                run = None
            if run is None:
                needed.lacking["runs"].append(where)
            else:
                needed.runs.add(run)
        elif LISTING.fullmatch(entry.name):
            _add_listing(needed, store.read(entry.name, SMALL), where)


def _notes(needed: _Named, tips: bool) -> list[str]:
    """What could not be read, for a line each."""
    what = {"runs": "runs are kept", "shards": "built shards are kept", "objects": "objects of DVC are kept"}
    way = "push them from the clone that has them" + (
        "" if tips else ", or look at the tips of the branches only, with --tips"
    )
    return [
        f"all {what[kind]}: neither the cache nor the remote has {some(sorted(set(lacking)))}; {way}"
        for kind, lacking in needed.lacking.items()
        if lacking
    ]


# what is there


def _sorted_out(entries: Iterable[Entry], names: Collection[str], limit: float) -> tuple[list[Entry], ...]:
    """Garbage in the order of its deletion, kept because it is named, kept because it is young. names: that are named."""
    garbage: list[Entry] = []
    kept: list[Entry] = []
    young: list[Entry] = []
    for entry in entries:
        (kept if entry.name in names else young if entry.modified >= limit else garbage).append(entry)
    return sorted(garbage, key=_rank), kept, young


def _objects(
    where: Remote, held: list[Entry], needed: _Named, reader: Reader, limit: float, unknown: dict[str, list[Entry]]
) -> Kind:
    """DVC's objects. The files of a folder whose list is kept stay with it, for DVC takes them for present."""
    by_md5 = {match[1] + match[2]: entry for entry in held if (match := OBJECT.fullmatch(entry.name))}
    keep = set(needed.objects)
    if needed.lacking["objects"]:
        keep |= by_md5.keys()
    for md5, entry in by_md5.items():
        if md5.endswith(".dir") and (md5 in keep or entry.modified >= limit):
            keep |= set((reader.folder(md5) or {}).values())
    names = {entry.name for md5, entry in by_md5.items() if md5 in keep}
    garbage, kept, young = _sorted_out(by_md5.values(), names, limit)
    others = [entry for entry in held if not OBJECT.fullmatch(entry.name) and entry.name != MARK]
    unknown[where.store.uri] = [entry for entry in others if not RUN_CACHE.fullmatch(entry.name)]
    return Kind(OBJECTS, where.store, garbage, kept, young)


def _shards(place: Storage, held: list[Entry], needed: _Named, limit: float, unknown: dict[str, list[Entry]]) -> Kind:
    """Shards and tables of their rows by content, and what each recipe made."""
    shards, recipes, others = [], [], []
    for entry in held:
        if SHARD.fullmatch(entry.name) or TABLE.fullmatch(entry.name):
            shards.append(entry)
        elif RECIPE.fullmatch(entry.name):
            recipes.append(entry)
        elif entry.name != MARK:
            others.append(entry)
    keep = {entry.name for entry in held} if needed.lacking["shards"] else set(needed.shards)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        made = dict(zip(recipes, pool.map(lambda entry: _shard_of(place, entry), recipes), strict=True))
    for entry, shard in made.items():
        if shard in needed.shards:
            keep.add(entry.name)
        elif shard and entry.modified >= limit:
            keep.add(shard)
    others += [entry for entry, shard in made.items() if shard is None]
    judged = [*(entry for entry, shard in made.items() if shard), *shards]
    garbage, kept, young = _sorted_out(judged, keep, limit)
    unknown[place.uri] = others
    return Kind(SHARDS, place, garbage, kept, young)


def _shard_of(place: Storage, recipe: Entry) -> str | None:
    """The shard that a recipe made, from the beginning of its file; None if no build wrote it."""
    with closing(place.chunks(recipe.name)) as chunks:  # type: ignore[type-var]
        made = SHARD_OF_RECIPE.match(next(chunks, b""))
    return made[1].decode() if made else None


def _of_store(
    store: Storage, held: list[Entry], needed: _Named, limit: float, unknown: dict[str, list[Entry]]
) -> list[Kind]:
    """Half-published versions and runs. A folder is as young as its youngest file; one that may go on has a day in any case."""
    folders: dict[str, list[Entry]] = defaultdict(list)
    others = []
    for entry in held:
        parts = entry.name.split("/")
        if VERSION.fullmatch(entry.name):
            folders["/".join(parts[:3])].append(entry)
        elif parts[0] == "runs" and len(parts) >= 3:
            folders["/".join(parts[:2])].append(entry)
        elif not OF_MODELS.fullmatch(entry.name) and parts[0] != "data":
            others.append(entry)
    unknown[store.uri] = [*unknown.get(store.uri, []), *others]
    made = []
    for name, top in ((VERSIONS, "models"), (RUNS, "runs")):
        garbage: list[Entry] = []
        kept: list[Entry] = []
        young: list[Entry] = []
        for folder, entries in folders.items():
            if not folder.startswith(f"{top}/"):
                continue
            if top == "models":
                needs = any(entry.name.endswith(f"/{VERSION_SUMS}") for entry in entries)
            else:
                needs = folder.removeprefix("runs/") in needed.runs or bool(needed.lacking["runs"])
            ended = f"{folder}/done.json" in {entry.name for entry in entries}
            fresh = max(entry.modified for entry in entries) >= (limit if ended else min(limit, time.time() - DAY))
            (kept if needs else young if fresh else garbage).extend(entries)
        made.append(Kind(name, store, sorted(garbage, key=_rank), kept, young))
    return made
