"""Two people's changes of a data set, or of dvc.lock, become one: what git runs for these files when it merges."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from pipeline.dvc_objects import DvcFolder, folders_that_are_files
from pipeline.errors import UserError, some
from pipeline.files import write_bytes
from pipeline.git import RefusalError, git
from pipeline.revisions.lock import Lock, Tracked, TrackedOut, parse
from pipeline.revisions.revision import cache_and_remote
from pipeline.storage import Folder

Value = TypeVar("Value")

DRIVERS = {"*.dvc": "memoir-dvc", "dvc.lock": "memoir-lock"}  # by the pattern in .gitattributes
ABSENT = object()
FILES = ("md5", "size", "nfiles")  # what a *.dvc file says of its folder's files


class Merged(NamedTuple):
    """A merged file. notes: what the user must know. conflict: whether one of them must be mended before the commit."""

    data: bytes
    notes: list[str]
    conflict: bool


def merge(base: Path, ours: Path, theirs: Path, name: str) -> Merged:
    """Merge the versions of dvc.lock or of a *.dvc file, and write the result over `ours`.

    base: their common ancestor; empty if there is none. name: the file's path in the project. The list of files of a merged
    folder is put into DVC's cache. Raises UserError for files that cannot be merged; then `ours` stays as it is.
    """
    merging = merge_lock if Path(name).name == "dvc.lock" else merge_tracked
    merged = merging(base.read_bytes(), ours.read_bytes(), theirs.read_bytes(), name)
    write_bytes(ours, merged.data)
    return merged


def three_way(
    base: Mapping[str, Value], ours: Mapping[str, Value], theirs: Mapping[str, Value]
) -> tuple[dict[str, Value], list[str]]:
    """What both sides made of `base`, and the keys of which they made different things; those are in none of the result."""
    merged: dict[str, Value] = {}
    conflicts = []
    for key in dict.fromkeys((*ours, *theirs, *base)):
        was, our, their = (side.get(key, ABSENT) for side in (base, ours, theirs))
        if our not in (their, was) and their != was:
            conflicts.append(key)
        elif (value := their if our == was else our) is not ABSENT:
            merged[key] = value  # type: ignore[assignment]
    return merged, conflicts


def merge_files(base: dict[str, str], ours: dict[str, str], theirs: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """The files of a folder that two sides changed, and the names in conflict, sorted; of those, `ours` is kept.

    Each: md5 by relative path, of a folder that can exist. In conflict are a file that both changed differently, one that a
    side changed and the other removed, and a file of one side that is a folder of the other.
    """
    merged, conflicts = three_way(base, ours, theirs)
    inside = folders_that_are_files(merged | dict.fromkeys(conflicts, ""))
    conflicts += [name for pair in inside for name in pair]
    for name in conflicts:
        merged.pop(name, None)
        if name in ours:
            merged[name] = ours[name]
    return merged, sorted(set(conflicts))


def merge_lock(base: bytes, ours: bytes, theirs: bytes, name: str) -> Merged:
    """The stages of dvc.lock that one side ran; those that both sides ran differently are left out, so that they run again."""
    from dvc.utils.serialize import dumps_yaml

    sides = [parse(text, f"{name} of {side}", Lock) for text, side in _named(base, ours, theirs)]
    stages, again = three_way(*(side.pop("stages", {}) for side in sides))
    rest, conflicts = three_way(*sides)
    if conflicts:
        raise UserError(
            f"{name}: both branches changed {', '.join(conflicts)}; take it from one: git checkout --ours {name}"
        )
    notes = [f"{name}: both branches ran {some(again, 20)}; `dvc repro` runs that again"] if again else []
    return Merged(dumps_yaml({**rest, "stages": stages}).encode(), notes, conflict=False)


def merge_tracked(base: bytes, ours: bytes, theirs: bytes, name: str) -> Merged:
    """A *.dvc file of the folder that holds both sides' changes; of a file in conflict it holds ours.

    Raises UserError if it is not one folder on both sides, if the sides differ in more than the folder's files, and if a
    list of files is neither in DVC's cache nor in its remote.
    """
    from dvc.utils.serialize import dumps_yaml

    sides = [parse(text, f"{name} of {side}", Tracked) if text else {} for text, side in _named(base, ours, theirs)]
    outs = [dict(side.pop("outs", [{}])[0]) for side in sides]
    known = [TrackedOut.model_validate({"path": "", **out}) for out in outs]
    rest, conflicts = three_way(*sides)
    bare = [{key: value for key, value in out.items() if key not in FILES} for out in outs]
    settings, more = three_way(*bare)
    if conflicts or more:
        what = ", ".join(conflicts + more)
        raise UserError(f"{name}: both branches changed its {what}; keep one: git checkout --ours {name} (or --theirs)")
    path = (Path(name).parent / str(settings.get("path"))).as_posix()
    if any(out and not (each.md5 or "").endswith(".dir") for out, each in zip(outs[1:], known[1:], strict=True)):
        raise UserError(
            f"{name}: both branches changed {path}, a file; keep one: git checkout --ours {name} (or --theirs)"
        )
    if any(out and each.hash != "md5" for out, each in zip(outs, known, strict=True)):
        raise UserError(
            f"{name}: was written by DVC 2; run `dvc cache migrate --dvc-files` on both branches, and merge again"
        )
    cache, remote = cache_and_remote()
    places = [cache, *([remote] if remote else [])]
    of_folder = [each.md5 if (each.md5 or "").endswith(".dir") else None for each in known]
    lists: list[dict[str, str]] = []
    for md5, side in zip(of_folder, ("the common ancestor", "ours", "theirs"), strict=True):
        folder = DvcFolder(places, md5.removesuffix(".dir")) if md5 else None
        try:
            lists.append(folder.files if folder else {})
        except UserError as error:
            raise UserError(
                f"{name} of {side}: {error}; then `git merge --abort`, and merge again, which fetches that list"
            ) from None
    files, in_conflict = merge_files(*lists)
    md5 = _keep(files)
    size = _size(known, lists, in_conflict, cache)
    counted = {"md5": md5, **({} if size is None else {"size": size}), "nfiles": len(files)}
    value = {**rest, "outs": [{**counted, **settings}]}
    data = dumps_yaml({key: value[key] for key in sorted(value, key=lambda key: key != "outs")}).encode()
    if not in_conflict:
        added = f"{len(files):,} files, of {len(lists[1]):,} of ours and {len(lists[2]):,} of theirs"
        return Merged(
            data, [f"{path}: {added}; `dvc pull {path}` brings them, and `dvc push` sends the list"], conflict=False
        )
    one = shlex.quote(f"{path}/{in_conflict[0]}")
    note = (
        f"{path}: both branches changed {some([f'{path}/{each}' for each in in_conflict], 20)}; ours is kept. For theirs: "
        f"`dvc get . {one} --rev MERGE_HEAD --force -o {one}` and `dvc add {shlex.quote(path)}`. Then `git add {shlex.quote(name)}`, and commit"
    )
    return Merged(data, [note], conflict=True)


def _named(base: bytes, ours: bytes, theirs: bytes) -> list[tuple[bytes, str]]:
    return [(base, "the common ancestor"), (ours, "ours"), (theirs, "theirs")]


def _keep(files: dict[str, str]) -> str:
    """Put a folder's list of files into DVC's cache, as DVC does; returns its md5 with .dir."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_data.hashfile.tree import Tree

    tree = Tree.from_list([{"md5": md5, "relpath": name} for name, md5 in files.items()], hash_name="md5")
    tree.digest()
    try:
        with Repo() as repo:
            repo.cache.local.add(tree.path, tree.fs, tree.oid)
    except DvcException as error:
        raise UserError(f"DVC: {' '.join(str(error).split())}") from None
    return str(tree.oid)


def _size(known: list[TrackedOut], lists: list[dict[str, str]], in_conflict: list[str], cache: Folder) -> int | None:
    """The bytes of the merged folder; None if they cannot be told from the three sizes and the cache, as DVC then does it."""
    was, our, their = (each.size if files else 0 for each, files in zip(known, lists, strict=True))
    if was is None or our is None or their is None:
        return None
    base, ours, theirs = lists
    total = our + their - was
    for name in theirs.keys() | base.keys():  # what theirs changed and is ours all the same is counted twice so far
        if theirs.get(name) != base.get(name) and (ours.get(name) == theirs.get(name) or name in in_conflict):
            for files, sign in ((theirs, -1), (base, 1)):
                if name in files:
                    path = cache.root / "files/md5" / files[name][:2] / files[name][2:]
                    if not path.is_file():
                        return None
                    total += sign * path.stat().st_size
    return total


def install() -> list[str]:
    """Have git in the current clone merge *.dvc and dvc.lock with `merge`; returns a line for each thing done.

    git's own configuration is the clone's alone; .gitattributes is the team's, and to be committed if this changes it.
    Raises UserError outside of a git repository.
    """
    command = f"{shlex.quote(sys.executable)} -m memoir data merge %O %A %B %P"
    for pattern, driver in DRIVERS.items():
        for key, value in {"name": f"memoir's merge of {pattern}", "driver": command}.items():
            try:
                git("config", f"merge.{driver}.{key}", value)
            except RefusalError as error:
                raise UserError(f"{error}; run this in the project's folder, a git repository") from None
    said = [f"git merges {' and '.join(DRIVERS)} of this clone with `memoir data merge`"]
    file = Path(".gitattributes")
    held = file.read_text("utf-8") if file.exists() else ""
    wanted = [f"{pattern} merge={driver}" for pattern, driver in DRIVERS.items()]
    if lacking := [line for line in wanted if line not in held.splitlines()]:
        ended = held if not held or held.endswith("\n") else f"{held}\n"
        write_bytes(file, (ended + "\n".join(lacking) + "\n").encode())
        said.append(f"{file}: {len(lacking)} lines added; commit it")
    return said
