"""What these credentials may do in a store, and whether its server keeps what a store promises."""

import os
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.storage import DeniedError, Storage, storage

MARK = "memoir-share.txt"  # stays in every place that was probed: the test of the right to write changes nothing then
TEXT = b"memoir probes here whether it may write; the file can be removed at any time.\n"


class Rights(NamedTuple):
    """What may be done. write, delete: whether the credentials have the right."""

    write: bool
    delete: bool

    def __str__(self) -> str:
        if not self.write:
            return "read-only: pull, restore and evaluate work; push, train and publish need the right to write"
        return "read, write and delete" if self.delete else "read and write (`memoir gc` needs the right to delete)"


def rights(uri: str, endpoint: str | None = None) -> Rights:
    """Try a place out: put a file, see it refused the second time, read it back, find it in the list, delete a name.

    uri: s3://bucket/prefix. It leaves the file MARK, always the same, and nothing else; several may try at once.
    Raises UserError for a place that cannot be read, and for a server that ignores If-None-Match, loses or changes what is sent.
    """
    place = storage(uri, endpoint)
    place.names(MARK)
    try:
        _create(place)
    except DeniedError:
        return Rights(write=False, delete=False)
    if _create(place):
        raise UserError(
            f"{place.uri}: the server ignores If-None-Match, so that two writers would silently replace each other's files; "
            "use one that has conditional writes"
        )
    try:
        whole = place.read(MARK, 2**20) == TEXT
    except FileNotFoundError:
        whole = False
    if not whole:
        raise UserError(
            f"{place.uri}/{MARK}: the server gives back something else than was sent; remove it, and try again"
        )
    if MARK not in place.names(MARK):
        raise UserError(
            f"{place.uri}: the server does not list {MARK}, which was just written; use one with consistent lists"
        )
    try:
        place.remove(f"{MARK}.{os.urandom(8).hex()}")  # nobody has this name; the right is asked for all the same
    except DeniedError:
        return Rights(write=True, delete=False)
    return Rights(write=True, delete=True)


def _create(place: Storage) -> bool:
    """Whether the file was written anew, rather than refused because it is there."""
    try:
        place.write_new(MARK, TEXT)
    except FileExistsError:
        return False
    return True
