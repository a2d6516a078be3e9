"""What all layouts share: the row, keys, the walk through a folder, matching files by key."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from pipeline.errors import UserError, nearest
from pipeline.images import SUFFIXES
from pipeline.layouts.files import ANY_NAME, SIDE_FILES, Rule, files_under, listed, pairs_in, safe_key, unusable

Split = Literal["train", "val", "test"]
Role = Literal["gt", "lq", "mask", "frame"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")


ARCHIVE = re.compile(r".*\.(zip|z\d\d|tar|tgz|tar\.\w+|7z|rar)(\.\d+)?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Row:
    """What a layout says of one file, before it is read.

    key: [A-Za-z0-9_-]+, shared by the files of one sample, one file per (split, key, role) unless rejected.
    path: below the root as it was given to the layout.
    scene: the scene, sequence or published subset the file stands in. frame: its place in a time-lapse scene, from 0.
    group: what is never split over shards: a target with all its inputs, the frames of one time-lapse scene. Unique in
    (dataset, split). reject_reason: why the file cannot be used; None if it can.
    part: which image of a file that holds several, as `pipeline.images.read_image` takes it; None for the whole file.
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
    part: str | None = None


@dataclass(frozen=True)
class Count:
    """The published number of usable rows of a split. subset: count only one scene or published subset.

    causes: other numbers that occur in practice, and what they mean.
    """

    split: Split
    role: Role
    number: int
    subset: str | None = None
    causes: Mapping[int, str] = field(default_factory=dict)


def _beside(path: Path, other: Path, root: Path) -> str:
    """A path below the root. Its letters are written out if its name looks like the other's."""
    name = path.relative_to(root).as_posix()
    alike = path.name != other.name and unicodedata.normalize("NFC", path.name) == unicodedata.normalize(
        "NFC", other.name
    )
    return ascii(name) if alike else name


def reject_same_key(rows: list[Row], root: Path) -> list[Row]:
    """The same rows; usable ones that share (split, key, role) become rejects, each naming the others."""
    files = defaultdict(list)
    for row in rows:
        if row.reject_reason is None:
            files[row.split, row.key, row.role].append(row.path)

    def judged(row: Row) -> Row:
        same = files[row.split, row.key, row.role]
        others = [path for path in same if path != row.path] if len(same) > 1 else []
        if row.reject_reason is not None or not others:
            return row
        names = ", ".join(_beside(path, row.path, root) for path in others)
        return replace(row, reject_reason=f"same key {row.key} as {names}; keep or rename one")

    return [judged(row) for row in rows]


class Layout:
    """The folder tree of one publication. A subclass says where its files are and how they belong together.

    They do so by their names (`matched`), by lying in one image (`halves`), or because a text file of the publication
    says so: `listed_pairs(lists, roles, folders, key, scene, below)`.
    """

    name: ClassVar[str]
    tree: ClassVar[str]  # the published tree, for messages
    variants: ClassVar[tuple[str, ...]] = ()  # releases that are not interchangeable; the user names one
    counts: ClassVar[tuple[Count, ...]] = ()  # as published; empty where the number is open
    home: ClassVar[str | None] = None  # where its publishers offer it, as far as we know
    licence: ClassVar[str | None] = None  # of the images, as their publishers state it; None where we know of none

    def __init__(self, dataset: str, root: Path, variant: str | None = None) -> None:
        """dataset: the user's name for it, of the characters of a key. root: the folder it was unpacked into.

        Raises UserError for a name unfit for keys, a variant that the layout does not know (or none where it must be
        chosen), and a root that is no folder, or that holds archives which nobody has unpacked.
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
        if root.is_file() and ARCHIVE.fullmatch(root.name):
            raise UserError(f"{root}: an archive; unpack it, and give the folder as root")
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; unpack the data set {dataset!r} there: {self.tree}")
        paths = [root / entry.name for entry in listed(root)]
        inside = [path for path in paths if path.is_dir() or path.suffix.lower() not in SIDE_FILES]
        if inside and all(ARCHIVE.fullmatch(path.name) and not path.is_dir() for path in inside):
            names = f"{inside[0].name}{f' and {len(inside) - 1} more' if inside[1:] else ''}"
            raise UserError(f"{root}: holds nothing but archives ({names}); unpack them: {self.tree}")
        self.dataset, self.root, self.variant = dataset, root, variant

    def published(self) -> tuple[Count, ...]:
        """The counts of this data set's variant."""
        return self.counts

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

    def folder(self, *names: str) -> Path:
        """The first of these folders below the root that there is; the first of all where there is none.

        With "" as the last name the root stands in: an archive may have been unpacked with its own folder or without.
        """
        folders = [self.root / name for name in names]
        return next((each for each in folders if each.is_dir()), folders[0])

    def split_folders(self) -> list[Split]:
        """Which folders of a split are in the root. Raises UserError for one that is written otherwise, such as `Test`."""
        inside = {entry.name for entry in listed(self.root) if (self.root / entry.name).is_dir()}
        for name in sorted(inside - set(SPLITS)):
            if name.lower() in SPLITS:  # ignored, or taken for training data, it would go unnoticed
                raise UserError(f"{self.root / name}: a split folder is written {name.lower()!r}; rename it")
        return [split for split in SPLITS if split in inside]

    def beside(self, split: Split, role: Role, folder: Path, names: Sequence[str]) -> Iterator[Row]:
        """The rejects of a folder: everything beside the folders `names`, except text files (README.md, ...)."""
        for entry in listed(folder) if folder.is_dir() else ():
            path = folder / entry.name
            if entry.name in names if path.is_dir() else path.suffix.lower() in SIDE_FILES:
                continue
            for each in files_under(path) if path.is_dir() else [path]:
                wanted = f"{', '.join(names[:-1])} or {names[-1]}"
                yield self.reject(split, role, each, f"not in {wanted}; move it into one of them")

    def loose(self, split: Split, role: Role, folder: Path, reason: str) -> Iterator[Row]:
        """The images directly in a folder that holds only folders as published. All of them are rejects."""
        for entry in listed(folder) if folder.is_dir() else ():
            path = folder / entry.name
            if path.suffix.lower() in SUFFIXES and not path.is_dir():
                yield self.reject(split, role, path, reason)

    def images(self, split: Split, role: Role, folder: Path, subset: str | None = None) -> Iterator[Row]:
        """The files of a flat folder. subset: the published subset they are from: their scene, and the key's start."""
        yield from self.matched(split, {role: folder}, subset)

    def matched(
        self,
        split: Split,
        folders: Mapping[Role, Path | Sequence[Path]],
        subset: str | None = None,
        rules: Mapping[Role, str] | None = None,
        *,
        deep: bool = False,
    ) -> Iterator[Row]:
        """The files of flat folders that belong together by their names, ordered by key.

        rules: a `Rule` for each role's names; by default equal names (the suffix apart). What the rules of all roles share
        must be equal, and makes the group; a rule with a placeholder of its own, such as `{image}_{rain}` beside
        `{image}`, says that a group has many such files, each with a key of its own. Roles may share a folder, and a folder
        may lie in that of another role.
        deep: the names begin with their subfolders, cats/1; otherwise there are none.
        """
        kinds = {role: Rule(rules[role]) if rules and role in rules else ANY_NAME for role in folders}
        shared = min((kind.placeholders for kind in kinds.values()), key=len)
        places: dict[Path, list[Role]] = defaultdict(list)
        for role, folder in folders.items():
            for each in [folder] if isinstance(folder, Path) else folder:
                places[each].append(role)

        def named(values: str) -> str:
            """The key of values, which are compared as they are: a-b/c and a/b-c may have one key, but are no pair."""
            name = values.replace("\0", "-").replace("/", "-")
            return safe_key(f"{subset}-{name}" if subset else name)

        rows: list[Row] = []
        values_of: dict[Path, dict[str, str]] = {}
        for folder, roles in places.items():
            for path in files_under(folder):
                if next((each for each in path.parents if each in places), folder) != folder:
                    continue  # the folder of another role, below this one
                flat = deep or path.parent == folder
                reason = unusable(path) if flat else "in a subfolder, where the layout has none"
                stem = unicodedata.normalize("NFC", (path.parent.relative_to(folder) / path.stem).as_posix())
                fits = [(role, values) for role in roles if (values := kinds[role].parse(stem)) is not None]
                if not reason and not fits:
                    patterns = " or ".join(kinds[role].pattern for role in roles)
                    reason = f"its name is not of the form {patterns}"
                if reason:
                    yield self.reject(split, roles[0], path, reason)
                    continue
                role, values = fits[0]
                values_of[path] = values
                key = named("\0".join(values[name] for name in kinds[role].placeholders))
                group = "\0".join(values[name] for name in shared)
                rows.append(replace(self.row(split, role, path, key, subset), group=group))
        for row in self._joined(rows, folders, kinds, values_of, named):
            yield replace(row, group=named(row.group))

    def _joined(
        self,
        rows: list[Row],
        folders: Mapping[Role, Path | Sequence[Path]],
        kinds: Mapping[Role, Rule],
        values_of: Mapping[Path, Mapping[str, str]],
        named: Callable[[str], str],
    ) -> Iterator[Row]:
        """The rows in order of their keys; rows without a partner become rejects, each naming the file that it lacks."""
        rows = reject_same_key(rows, self.root)
        files = Counter((row.group, row.role) for row in rows)
        usable = Counter((row.group, row.role) for row in rows if row.reject_reason is None)
        rank = {role: i for i, role in enumerate(folders)}
        for row in sorted(rows, key=lambda row: (named(row.group), row.group, row.key, rank[row.role], row.path)):
            reason = row.reject_reason
            for role, folder in folders.items():
                if reason is not None or usable[row.group, role]:
                    continue
                place = folder if isinstance(folder, Path) else folder[0]
                if files[row.group, role]:
                    reason = f"no {place.name}: {files[row.group, role]} files have the key {row.key}"
                else:
                    names = values_of[row.path]
                    wanted = kinds[role].pattern.format_map({n: names.get(n, "*") for n in kinds[role].placeholders})
                    wanted = (place / f"{wanted}{row.path.suffix}").relative_to(self.root).as_posix()
                    reason = f"no {place.name if place.name not in SPLITS else role}: {wanted} is missing"
            yield replace(row, reject_reason=reason)

    def halves(
        self, split: Split, folder: Path, *, left: Role, right: Role, subset: str | None = None
    ) -> Iterator[Row]:
        """The images of a flat folder where each image holds a pair side by side."""
        for row in self.images(split, left, folder, subset):
            if row.reject_reason is None:
                yield replace(row, part="left")
                yield replace(row, role=right, part="right")
            else:
                yield row

    def listed_pairs(
        self,
        lists: Mapping[Split, Path],
        roles: tuple[Role, Role],
        folders: Sequence[Path],
        key: Callable[[Path], str],
        scene: Callable[[Path], str | None] = lambda path: None,
        below: Path | None = None,
    ) -> Iterator[Row]:
        """The pairs that text files name, a gt and an lq a line in the order of roles. A gt may have many inputs.

        folders: where the images are; an image that no list names is a reject. key: the key of an image, before `safe_key`;
        the key of a gt makes the group. below: the folder that the names in the lists start from, the root by default. A
        line is ignored if both its images are missing. Raises UserError for a line that does not name two images.
        """
        there = {path: unusable(path) for folder in folders for path in files_under(folder)}
        named: set[Path] = set()
        for split, file in lists.items():
            inputs: dict[Path, set[Path]] = defaultdict(set)
            targets: dict[Path, set[Path]] = defaultdict(set)
            for pair in pairs_in(file, below or self.root) if file.is_file() else ():
                target, source = pair if roles[0] == "gt" else pair[::-1]
                inputs[target].add(source)
                targets[source].add(target)
            named |= {*inputs, *targets}
            faults = {path: there.get(path, "missing") for path in (*inputs, *targets)}
            for path, several in targets.items():
                if len(several) > 1 and not faults[path]:
                    names = " and ".join(sorted(target.relative_to(self.root).as_posix() for target in several))
                    faults[path] = f"in {file.name} with {names}; keep one line"
            for target, sources in sorted(inputs.items()):
                mine = sorted(source for source in sources if target == min(targets[source]))  # each input once
                lost = None if any(faults[source] is None for source in sources) else min(sources)
                files: list[tuple[Role, Path, Path | None]] = [("lq", source, target) for source in mine]
                files.append(("gt", target, lost))
                for role, path, partner in files:
                    reason = faults[path]
                    if reason is None and partner is not None and (fault := faults[partner]):
                        other = "gt" if role == "lq" else "lq"
                        reason = f"no {other}: {partner.relative_to(self.root).as_posix()} is {fault}"
                    if path in there:
                        row = self.row(split, role, path, safe_key(key(path)), scene(path))
                        yield replace(row, group=safe_key(key(target)), reject_reason=reason)
        missing = [f"; {file.name} is missing" for file in lists.values() if not file.is_file()]
        for path, fault in there.items():
            if path not in named:
                yield self.reject(next(iter(lists)), roles[0], path, fault or f"no list names it{''.join(missing)}")
