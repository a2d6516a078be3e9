"""What DVC keeps by content, in its cache and in a remote: a file by its md5, a folder as the list of its files.

<cache or remote>/files/md5/<md5[:2]>/<md5[2:]>        a file
<cache or remote>/files/md5/<md5[:2]>/<md5[2:]>.dir    the list of a folder's files, as JSON
"""

import errno
import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, NoReturn

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.config import Frozen, parse_json
from pipeline.errors import UserError
from pipeline.storage import Entry, Folder, Storage, storage

MEND = "remove it, and `dvc push` the folder again from where it was made"
LISTING_BYTES = 2**29  # the most bytes of a list of files: five million names

Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class _Entry(Frozen):
    """One file, as a list of files has it."""

    md5: Md5
    relpath: str


_ENTRIES = TypeAdapter(list[_Entry])


def read_files(data: bytes, where: str) -> dict[str, str]:
    """The md5 of each file in a folder, by its relative path, from the list that DVC keeps of the folder.

    where: for messages. Raises UserError for what is no such list, and for a path that is absolute, leads out of the folder,
    is given twice or is also the folder of another one.
    """
    try:
        entries = _ENTRIES.validate_python(parse_json(data, where))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "it"
        raise UserError(f"{where}: not a list of files that DVC writes ({place}: {first['msg']}); {MEND}") from None
    files = {entry.relpath: entry.md5 for entry in entries}
    if len(files) < len(entries):
        raise UserError(f"{where}: not a list of files that DVC writes (a name is given twice); {MEND}")
    for name in files:
        parts = name.split("/")
        if "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise UserError(f"{where}: lists {name[:100]!r}, which is no path inside its folder; {MEND}")
    if inside := next(folders_that_are_files(files), None):
        raise UserError(
            f"{where}: lists {inside[0][:100]!r} as a file, and as the folder of {inside[1][:100]!r}; {MEND}"
        )
    return files


def folders_that_are_files(names: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Each name that is also the folder of another name, with that name."""
    for name in names:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            if (folder := "/".join(parts[:depth])) in names:
                yield folder, name


def object_name(md5: str) -> str:
    """Where a cache or a remote has an object. md5: of a file, or that of a folder's list with .dir."""
    return f"files/md5/{md5[:2]}/{md5[2:]}"


class DvcFolder(Storage):
    """A folder as DVC's cache or remote keeps it: its files by their relative paths, to be read only.

    What `read` and `download` give is compared with its md5; `chunks` leaves that to its caller.
    """

    def __init__(self, places: Sequence[Storage], md5: str) -> None:
        """places: cache and remotes, of which the first that has an object gives it. md5: of the folder, without .dir."""
        self.places, self.md5 = tuple(places), md5
        last = self.places[-1]
        root = str(last.root.resolve()) if isinstance(last, Folder) else last.uri
        self.uri = f"{root}/{object_name(f'{md5}.dir')}"

    @cached_property
    def files(self) -> dict[str, str]:
        """The md5 of each file, by its relative path. Raises UserError if the list is missing, damaged or not DVC's."""
        try:
            data = b"".join(_within(self._object(f"{self.md5}.dir", 0, once=False), LISTING_BYTES, self.uri))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{self.uri}: not there; `dvc push` it from where it was made") from None
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != self.md5:
            raise UserError(f"{self.uri}: damaged; remove it, and `dvc push` it again from where it was made")
        return read_files(data, self.uri)

    def chunks(self, name: str, start: int = 0, *, once: bool = False) -> Iterator[bytes]:
        return self._object(self._md5(name), start, once=once)

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self.files if name.startswith(prefix))

    def entries(self, prefix: str = "") -> list[Entry]:
        return [self._entry(name) for name in self.names(prefix)]

    def size(self, name: str) -> int:
        """The bytes of a file. Raises UserError if no place has it."""
        return self._entry(name).size

    def _entry(self, name: str) -> Entry:
        key = object_name(self._md5(name))
        for place in self.places:
            for entry in place.entries(key):
                if entry.name == key:
                    return entry._replace(name=name)
        raise self._missing(name)

    def write(self, name: str, data: bytes | Path) -> None:
        self._refuse(name)

    def write_new(self, name: str, data: bytes | Path) -> None:
        self._refuse(name)

    def remove(self, name: str) -> None:
        self._refuse(name)

    def _refuse(self, name: str) -> NoReturn:
        raise UserError(f"{self.uri}/{name}: not written; what DVC keeps is changed by `dvc add` and `dvc push`")

    def _missing(self, name: str) -> UserError:
        return UserError(f"{self.uri}/{name}: its object is missing; `dvc push` it from where it was made")

    def _md5(self, name: str) -> str:
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, "not in the folder", f"{self.uri}/{name}")
        return self.files[name]

    def _object(self, md5: str, start: int, *, once: bool) -> Iterator[bytes]:
        for place in self.places[:-1]:
            try:
                yield from place.chunks(object_name(md5), start, once=once)
                return
            except (FileNotFoundError, NotADirectoryError):
                pass
        yield from self.places[-1].chunks(object_name(md5), start, once=once)

    def _limited(self, name: str, limit: int | None) -> Iterator[bytes]:
        digest = hashlib.md5(usedforsecurity=False)
        wanted = self._md5(name)
        try:
            for chunk in super()._limited(name, limit):
                digest.update(chunk)
                yield chunk
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(name) from None
        if digest.hexdigest() != wanted:
            raise UserError(
                f"{self.uri}/{name}: its contents are not those of its md5; `dvc push` or `dvc fetch` it again"
            )


def _within(chunks: Iterator[bytes], limit: int, where: str) -> Iterator[bytes]:
    for chunk in chunks:
        limit -= len(chunk)
        if limit < 0:
            raise UserError(f"{where}: longer than the {LISTING_BYTES:,} bytes that a list of files may have")
        yield chunk


def dataset_storage(uri: str) -> Storage:
    """Where a built dataset is: a folder or URI as `pipeline.storage.storage` takes it, or a folder in a DVC remote.

    The latter is named by its list of files, <remote>/files/md5/<2 digits>/<30 digits>.dir, and so holds one state for ever.
    """
    if found := re.fullmatch(r"(.+)/files/md5/([0-9a-f]{2})/([0-9a-f]{30})\.dir", uri):
        return DvcFolder([storage(found[1])], found[2] + found[3])
    return storage(uri)
