"""Which objects the .dvc files and the dvc.lock of a revision name, and which of the user's files each of them is."""

import hashlib
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from jobs.documents import SMALL, Document, Line
from jobs.sharing import repo
from jobs.sharing.remote import Cache
from pipeline.dvc_objects import LISTING_BYTES, object_name, read_files
from pipeline.git import git
from pipeline.params import FILE, is_of_the_past
from pipeline.revisions.lock import parse
from pipeline.storage import Storage

FILES = ("*.dvc", "dvc.lock")

Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")]
Size = Annotated[int, Field(ge=0, lt=2**63)]


class Out(Document):
    """An output as a .dvc file or dvc.lock has it. hash: absent where DVC 2 wrote it, which kept objects elsewhere."""

    path: Line
    md5: Md5 | None = None
    hash: Line | None = None
    size: Size | None = None
    cache: bool = True
    push: bool = True
    remote: Line | None = None


class Dependency(Document):
    """A dependency of a .dvc file. repo: of an import, the repository whose remote has it."""

    repo: dict[str, Any] | None = None


class Stage(Document):
    """A .dvc file, or a stage of dvc.lock."""

    outs: tuple[Out, ...] = ()
    deps: tuple[Dependency, ...] = ()


class Lock(Document):
    """dvc.lock."""

    stages: dict[str, Stage] = Field({})


class Named(NamedTuple):
    """An output of a revision. path: from the top of the repository. size: bytes, of all files of a folder; None: not known."""

    md5: str
    path: str
    size: int | None
    revision: str


class Skipped(NamedTuple):
    """An output that is not among the remote's objects, and why."""

    path: str
    revision: str
    reason: str


def outs(
    data: bytes, path: str, revision: str, remote: str | None, params: bytes | None = None
) -> Iterator[Named | Skipped]:
    """The outputs that a .dvc file or a dvc.lock names. path: of that file. remote: the name of the remote that is asked for.

    params: the params.yaml beside a dvc.lock; stages of tasks and recipes that it names no more are left out. None: all count.
    Raises UserError for another kind of file.
    """
    where = f"{path} ({revision})" if revision else path
    lock = path.endswith("dvc.lock")
    value = parse(data, where, Lock if lock else Stage)
    stages = Lock.model_validate(value).stages if lock else {"": Stage.model_validate(value)}
    for stage in (stage for name, stage in stages.items() if not is_of_the_past(name, params)):
        imported = any(dependency.repo for dependency in stage.deps)
        for out in stage.outs:
            name = posixpath.normpath(posixpath.join(posixpath.dirname(path), out.path))
            if imported or not (out.cache and out.push) or (out.remote and remote and out.remote != remote):
                continue
            if out.md5 is None:
                yield Skipped(name, revision, "has no MD5: not run yet, or versioned by the cloud")
            elif out.hash != "md5":
                yield Skipped(
                    name, revision, "was written by DVC 2; `dvc cache migrate --dvc-files` brings it up to date"
                )
            else:
                yield Named(out.md5, name, out.size, revision)


def named(
    repository: Path, remote: str | None, copies: list[Path], commits: dict[str, str], *, history: bool = False
) -> list[Named | Skipped]:
    """What these working copies of a repository and these commits name, each output once.

    remote: outputs that are of another one are left out; None: all count. commits: commit -> its name. history: and what all
    commits before them name, and what is of tasks and recipes of the past. Files that git has itself are left out.
    """
    found: dict[tuple[str, str], Named | Skipped] = {}
    read: dict[tuple[str, str, str], list[Named | Skipped]] = {}  # the same dvc.lock is in many branches

    def add(each: Iterable[Named | Skipped], own: dict[str, str]) -> None:
        for out in each:
            if out.path not in own:
                found.setdefault((out.path, out.md5 if isinstance(out, Named) else out.reason), out)

    def of_blob(blob: repo.Blob, params: str = "") -> list[Named | Skipped]:
        key = blob.id, blob.path, params
        if key not in read:
            data, beside = repo.contents(repository, blob.id), repo.contents(repository, params) if params else None
            read[key] = list(outs(data, blob.path, blob.revision, remote, beside))
        return read[key]

    for copy in copies:
        own = repo.tracked_files(copy, None)
        for path in _here(copy):
            beside = path.with_name(FILE.name)
            params = beside.read_bytes() if beside.is_file() and not history else None
            add(outs(path.read_bytes(), path.relative_to(copy).as_posix(), "", remote, params), own)
    for commit, name in commits.items():
        own = repo.tracked_files(repository, commit)
        for file, blob in own.items():
            if _names_outs(file):
                params_id = "" if history else own.get(posixpath.join(posixpath.dirname(file), FILE.name), "")
                add(of_blob(repo.Blob(blob, file, name), params_id), own)
    if history and commits:
        for each in repo.in_history(repository, commits, FILES):
            add(of_blob(each), {})
    return list(found.values())


def _here(copy: Path) -> list[Path]:
    """The .dvc files and dvc.lock of a working copy, committed or not."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", place=copy).decode(
        errors="surrogateescape"
    )
    names = {name for name in listed.split("\0") if _names_outs(name)}
    return [copy / name for name in sorted(names) if (copy / name).is_file()]


def _names_outs(path: str) -> bool:
    return any(PurePosixPath(path).match(pattern) for pattern in FILES)


class Reader:
    """Small objects by their MD5, from the cache or the remote; each is read once."""

    def __init__(self, store: Storage, cache: Cache) -> None:
        self.store, self.cache = store, cache
        self._folders: dict[str, dict[str, str] | None] = {}

    def small(self, md5: str) -> bytes | None:
        """The contents of a list of files, or of another object of at most SMALL bytes; None if neither side has it whole."""
        if self.cache.whole(md5):
            return self.cache.path(md5).read_bytes()
        try:
            data = self.store.read(object_name(md5), LISTING_BYTES if md5.endswith(".dir") else SMALL)
        except FileNotFoundError:
            return None
        return data if hashlib.md5(data, usedforsecurity=False).hexdigest() == md5.removesuffix(".dir") else None

    def folder(self, md5: str) -> dict[str, str] | None:
        """The md5 of each file that a .dir object lists, by its relative path; None if neither side has it whole.

        Raises UserError for one that is no list.
        """
        if md5 not in self._folders:
            data = self.small(md5)
            where = f"{self.store.uri}/{object_name(md5)}"
            self._folders[md5] = None if data is None else read_files(data, where)
        return self._folders[md5]


def files(outputs: Iterable[Named], reader: Reader) -> dict[str, list[str]]:
    """MD5 -> the user's files of that contents, for the outputs and all files of those that are folders."""
    found: dict[str, list[str]] = defaultdict(list)
    for out in outputs:
        label = f" ({out.revision})" if out.revision else ""
        found[out.md5].append(f"{out.path}{'/' if out.md5.endswith('.dir') else ''}{label}")
        if out.md5.endswith(".dir"):
            for name, md5 in (reader.folder(out.md5) or {}).items():
                found[md5].append(f"{out.path}/{name}{label}")
    return found
