"""Runs and models from one store to another: what is missing, whole, and safe when several copy at once.

What makes a version or a checkpoint whole, its file of sums, is written last, and what points to it after that. A killed
copy is continued by the same command: files that are there with the right contents stay.
"""

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from jobs.documents import SMALL, Latest, read_document, read_sums
from jobs.publishing.promote import RECORDS
from jobs.restoring.checkpoint import SUMS as VERSION_SUMS
from jobs.restoring.checkpoint import WEIGHTS, fetch, versions
from jobs.training.resume import SUMS as CHECKPOINT_SUMS
from pipeline.errors import UserError, nearest
from pipeline.storage import Storage, storage

DONE = "done.json"
AGAIN = "publish or train again"
NAME = re.compile(r"(models/[^/]+(/[0-9a-f]{12})?|runs/[^/]+)")
POINTER = re.compile(r"models/[^/]+/[A-Za-z0-9_][A-Za-z0-9._-]*\.json")
RECORD = re.compile(rf"models/[^/]+/{RECORDS}/[A-Za-z0-9_][A-Za-z0-9._-]*\.json")


class Copied(NamedTuple):
    """What `copy` did. versions, runs, pointers: copied now. there: versions and runs that were there. bytes: sent.

    left: what was not copied, one line each.
    """

    versions: list[str]
    runs: list[str]
    pointers: list[str]
    there: int
    bytes: int
    left: list[str]


def copy(source: str, target: str, names: list[str], say: Callable[[str], None]) -> Copied:
    """Copy published versions and finished runs, and then the pointers to versions.

    source, target: stores. names: models/<recipe>, models/<recipe>/<version> or runs/<run>; none: all there are. say: gets a
    line for each that is copied. A pointer of the target that names another version stays. Every file is checked by its
    sha256. Raises UserError for a name that is not there, a damaged file, and a file that the target has with other contents.
    """
    here, there = storage(source), storage(target)
    if here.uri.rstrip("/") == there.uri.rstrip("/"):
        raise UserError(f"{source}: is both stores; name two")
    whole, runs = versions(here), _runs(here)
    chosen = _chosen(here, names, [f"models/{version}" for version in whole], sorted(runs))
    done = Copied([], [], [], 0, 0, [])
    known, size = set(versions(there)), 0
    for name in chosen:
        if name.startswith("runs/"):
            if not runs[name]:
                done.left.append(
                    f"{here.uri}/{name}: has no {DONE}: training, or broken off; copy it when it has ended"
                )
                continue
            sent = _run(here, there, name)
        else:
            held = name.removeprefix("models/") in known
            sent = _same(here, there, name) if held else _folder(here, there, name, VERSION_SUMS)
        if sent is None:
            done = done._replace(there=done.there + 1)
            continue
        (done.runs if name.startswith("runs/") else done.versions).append(name)
        size += sent
        say(f"{there.uri}/{name}: copied, {sent:,} bytes")
    recipes = {name.split("/")[1] for name in chosen if name.startswith("models/")}
    for entry in here.names("models/"):
        if entry.split("/")[1] not in recipes:
            continue
        if POINTER.fullmatch(entry):
            _pointer(here, there, entry, done)
        elif RECORD.fullmatch(entry):
            _record(here, there, entry, done)
    return done._replace(bytes=size)


def _runs(place: Storage) -> dict[str, bool]:
    """The runs of a store, as runs/<run>, and whether each has ended."""
    names = place.names("runs/")
    found = {"/".join(name.split("/")[:2]): False for name in names if name.count("/") >= 2}
    return found | {name.removesuffix(f"/{DONE}"): True for name in names if re.fullmatch(rf"runs/[^/]+/{DONE}", name)}


def _chosen(place: Storage, names: list[str], models: list[str], runs: list[str]) -> list[str]:
    """What the names stand for, in order; runs first, for models are made from them."""
    found = []
    for name in names:
        name = name.strip("/")
        if not NAME.fullmatch(name):
            raise UserError(f"{name!r}: expected models/<recipe>, models/<recipe>/<version> or runs/<run>")
        matching = [each for each in (*models, *runs) if each == name or each.startswith(f"{name}/")]
        if not matching:
            raise UserError(
                f"{place.uri}/{name}: nothing whole there; {nearest(name, [*models, *runs] or ['nothing'])}"
            )
        found += matching
    chosen = dict.fromkeys(found if names else [*runs, *models])
    if not chosen:
        raise UserError(f"{place.uri}: no published versions and no runs in it; check the URI")
    return sorted(chosen, reverse=True)


def _same(here: Storage, there: Storage, name: str) -> int | None:
    """None, as for what need not be sent. Raises UserError unless both stores have the same version."""
    sums = [place.read(f"{name}/{VERSION_SUMS}", SMALL) for place in (here, there)]
    if sums[0] != sums[1]:
        raise _conflict(there, f"{name}/{VERSION_SUMS}")
    return None


def _run(here: Storage, there: Storage, name: str) -> int | None:
    """Copy a run that has ended; returns the bytes that were sent, None if it was there."""
    if f"{name}/{DONE}" in there.names(f"{name}/{DONE}"):
        if here.read(f"{name}/{DONE}", SMALL) != there.read(f"{name}/{DONE}", SMALL):
            raise _conflict(there, f"{name}/{DONE}")
        return None
    names = here.names(f"{name}/")
    steps = sorted(posixpath.dirname(each) for each in names if posixpath.basename(each) == CHECKPOINT_SUMS)
    sent = sum(_folder(here, there, step, CHECKPOINT_SUMS) for step in steps)
    beside = [each for each in names if posixpath.dirname(each) not in steps and each.count("/") == 2]
    for each in sorted(beside, key=lambda each: each.endswith(f"/{DONE}")):  # with done.json the run is whole
        sent += _file(here, there, each, here.sha256(each))
    return sent


def _folder(here: Storage, there: Storage, name: str, sums_name: str) -> int:
    """Copy a version or a checkpoint, its file of sums last; returns the bytes that were sent."""
    text = here.read(f"{name}/{sums_name}", SMALL)
    sums = read_sums(text, f"{here.uri}/{name}/{sums_name}", AGAIN)
    if WEIGHTS not in sums:
        raise UserError(f"{here.uri}/{name}/{sums_name}: damaged; {AGAIN}")
    held = set(there.names(f"{name}/"))
    sent = 0
    for file, sha256 in sums.items():
        if f"{name}/{file}" not in held or there.sha256(f"{name}/{file}") != sha256:
            sent += _file(here, there, f"{name}/{file}", sha256)
    try:
        there.write_new(f"{name}/{sums_name}", text)
        sent += len(text)
    except FileExistsError:
        if there.read(f"{name}/{sums_name}", SMALL) != text:
            raise _conflict(there, f"{name}/{sums_name}") from None
    return sent


def _file(here: Storage, there: Storage, name: str, sha256: str) -> int:
    """Copy a file; returns the bytes that were sent. Raises UserError if the source's, or one that is there, is another."""
    with TemporaryDirectory(prefix="memoir-copy-") as folder:
        path = Path(folder, "file")
        fetch(here, name, sha256, path)
        try:
            there.write_new(name, path)
        except FileExistsError:
            if there.sha256(name) != sha256:
                raise _conflict(there, name) from None
            return 0
        if there.sha256(name) != sha256:
            there.remove(name)
            raise UserError(f"{there.uri}/{name}: arrived with other contents; try again")
        return path.stat().st_size


def _pointer(here: Storage, there: Storage, name: str, done: Copied) -> None:
    """Copy latest.json, or another name of a version, if that version is in the target and the name is not taken there."""
    data = here.read(name, SMALL)
    version = read_document(data, Latest, f"{here.uri}/{name}", AGAIN)["version"]
    folder = posixpath.dirname(name)
    if not there.names(f"{folder}/{version}/{VERSION_SUMS}"):
        done.left.append(f"{here.uri}/{name}: names {version}, which was not copied")
        return
    try:
        there.write_new(name, data)
        done.pointers.append(name)
    except FileExistsError:
        held = there.read(name, SMALL)
        if held != data:
            done.left.append(f"{there.uri}/{name}: names another version, which stays")


def _record(here: Storage, there: Storage, name: str, done: Copied) -> None:
    """Copy the record of a promotion. Records have names of their own, and are never changed."""
    data = here.read(name, SMALL)
    try:
        there.write_new(name, data)
    except FileExistsError:
        if there.read(name, SMALL) != data:
            done.left.append(f"{there.uri}/{name}: is another record, which stays")


def _conflict(place: Storage, name: str) -> UserError:
    return UserError(f"{place.uri}/{name}: is there with other contents; remove that folder, or copy to another store")
