"""What all layouts share: the row, keys, the walk through a folder, matching files by key."""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from pipeline.errors import UserError, nearest
from pipeline.images import SUFFIXES

Split = Literal["train", "val", "test"]
Role = Literal["gt", "lq", "mask", "frame"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")

# A key starts the name of a tar member; the USTAR header has 100 bytes for the name without folders.
LONGEST_KEY = 80


@dataclass(frozen=True, slots=True)
class Row:
    """What a layout says of one file, before it is read.

    key: [A-Za-z0-9_-]+, shared by the files of one sample, one file per (split, key, role) unless rejected.
    path: below the root as it was given to the layout.
    scene: the scene, sequence or published subset the file stands in. frame: its place in a time-lapse scene, from 0.
    group: what is never split over shards: the key of an image or a pair, the scene of time-lapse frames. Unique in
    (dataset, split). reject_reason: why the file cannot be used; None for a good one.
    """

    dataset: str
    variant: str | None
    split: Split
    key: str
    role: Role
    path: Path
    scene: str | None
    frame: int | None
    group: str
    reject_reason: str | None


def safe_key(name: str) -> str:
    """A key for `name`, a file's name without its last suffix (or such names joined by `-`).

    A name of letters, digits, `_` and `-`, without a leading `-` and of at most 80 characters, is its own key. Another
    one has its other characters replaced by `_`, and 12 hex digits of its BLAKE2b behind a `-`, so that `scene.1` and
    `scene 1` stay apart. A key is never parsed back.
    """
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name) and len(name) <= LONGEST_KEY:
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
    masked = re.sub(r"^-|[^A-Za-z0-9_-]", "_", name)
    return f"{masked[: LONGEST_KEY - len(digest) - 1]}-{digest}"


def natural(name: str) -> tuple[list[str | int], str]:
    """A sort key that puts `frame2` before `frame10`; names that differ only by leading zeros keep a fixed order."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def listed(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, hidden entries left out, sorted by name. Raises UserError if that cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); mend its permissions") from None


def files_under(folder: Path) -> Iterator[Path]:
    """All files below `folder`, sorted by name at each level; nothing if it does not exist.

    Hidden files and folders are left out. Links to folders are followed, but not back into a folder that is open.
    Raises UserError for a folder that cannot be listed and a name that is not UTF-8.
    """

    def walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
        stat = folder.stat()
        here = (stat.st_dev, stat.st_ino)
        if here in above:
            return
        for entry in listed(folder):
            path = folder / entry.name
            try:
                entry.name.encode()
            except UnicodeEncodeError:
                raise UserError(f"{str(path)!a}: the name is not UTF-8; rename it") from None
            # a link that leads to itself makes entry.is_dir() raise, and path.is_dir() say False
            if path.is_dir() if entry.is_symlink() else entry.is_dir():
                yield from walk(path, above | {here})
            else:
                yield path

    if folder.is_dir():
        yield from walk(folder, frozenset())


def unusable(path: Path) -> str | None:
    """Why a file cannot be an image, judged without opening it; None if it can."""
    if path.suffix.lower() not in SUFFIXES:
        return "not an image by its suffix"
    if not path.is_file():
        return "a broken link, or not a regular file"
    return None


def reject_same_key(rows: list[Row], root: Path) -> list[Row]:
    """The same rows; usable ones that share (split, key, role) become rejects, each naming the others."""
    files = defaultdict(list)
    for row in rows:
        if row.reject_reason is None:
            files[row.split, row.key, row.role].append(row.path)

    def judged(row: Row) -> Row:
        others = [path for path in files[row.split, row.key, row.role] if path != row.path]
        if row.reject_reason is not None or not others:
            return row
        names = ", ".join(path.relative_to(root).as_posix() for path in others)
        return replace(row, reject_reason=f"same key {row.key} as {names}; keep or rename one")

    return [judged(row) for row in rows]


class Layout:
    """The folder tree of one publication. A subclass says where its files are and how they belong together."""

    name: ClassVar[str]
    tree: ClassVar[str]  # the published tree, for messages
    variants: ClassVar[tuple[str, ...]] = ()  # releases that are not interchangeable; the user names one
    counts: ClassVar[Mapping[str, int]] = {}  # published number of groups in each split; empty where it is open

    def __init__(self, dataset: str, root: Path, variant: str | None = None) -> None:
        """dataset: the user's name for it, of the characters of a key. root: the folder it was unpacked into.

        Raises UserError for a name unfit for keys, a variant that the layout does not know (or none where it must be
        chosen), and a root that is no folder.
        """
        if safe_key(dataset) != dataset:
            raise UserError(f"{root}: the data set name {dataset!r} may hold letters, digits, '_' and '-' only")
        if variant is None and self.variants:
            raise UserError(f"{root}: layout {self.name!r} needs a variant; known: {', '.join(self.variants)}")
        if variant is not None and not self.variants:
            raise UserError(f"{root}: layout {self.name!r} has no variants; leave out {variant!r}")
        if variant is not None and variant not in self.variants:
            raise UserError(
                f"{root}: layout {self.name!r} has no variant {variant!r}; {nearest(variant, list(self.variants))}"
            )
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; unpack the data set {dataset!r} there: {self.tree}")
        self.dataset, self.root, self.variant = dataset, root, variant

    def scan(self) -> Iterator[Row]:
        """The rows of every file in the published tree, rejects included, in an order that depends on names only."""
        raise NotImplementedError

    def rows(self) -> Iterator[Row]:
        """Every file of the data set, usable or rejected with its reason, in the order of `scan`.

        Memory is proportional to the number of files. Raises UserError if there are none.
        """
        rows = list(self.scan())
        if not rows:
            raise UserError(f"{self.root}: holds nothing of the layout {self.name!r}; expected {self.tree}")
        yield from reject_same_key(rows, self.root)

    def row(self, split: Split, role: Role, path: Path, key: str, scene: str | None = None) -> Row:
        """A usable file. Its group is its scene if it is a frame, else its key."""
        group = scene if role == "frame" and scene else key
        return Row(self.dataset, self.variant, split, key, role, path, scene, None, group, None)

    def reject(self, split: Split, role: Role, path: Path, reason: str) -> Row:
        """A file that is no part of any sample; it has a key of its own, so that it takes no other file with it."""
        key = safe_key(path.relative_to(self.root).as_posix())
        return replace(self.row(split, role, path, key), reject_reason=reason)

    def images(self, split: Split, role: Role, folder: Path, subset: str | None = None) -> Iterator[Row]:
        """The files of a flat folder. subset: the published subset they are from: their scene, and the key's start."""
        for path in files_under(folder):
            reason = unusable(path) if path.parent == folder else "in a subfolder, where the layout has none"
            if reason:
                yield self.reject(split, role, path, reason)
            else:
                yield self.row(split, role, path, safe_key(f"{subset}-{path.stem}" if subset else path.stem), subset)

    def matched(self, split: Split, folders: Mapping[Role, Path], subset: str | None = None) -> Iterator[Row]:
        """The files that have the same name (the suffix apart) in the folder of each role, ordered by key."""
        rows = [row for role, folder in folders.items() for row in self.images(split, role, folder, subset)]
        rows = reject_same_key(rows, self.root)
        number = Counter((row.key, row.role) for row in rows)
        rank = {role: i for i, role in enumerate(folders)}
        for row in sorted(rows, key=lambda row: (row.key, rank[row.role], row.path)):
            reason = row.reject_reason
            for role, folder in folders.items():
                if reason is None and number[row.key, role] == 0:
                    wanted = (folder / row.path.name).relative_to(self.root).as_posix()
                    reason = f"no {folder.name}: {wanted} is missing"
                elif reason is None and number[row.key, role] > 1:
                    reason = f"no {folder.name}: {number[row.key, role]} files have the key {row.key}"
            yield replace(row, reject_reason=reason)
