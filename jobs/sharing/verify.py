"""What DVC's remote really holds against what revisions name, and the way to bring back what it lacks.

DVC itself believes that a folder is whole once the list of its files is there, and keeps an index of what it has seen in the
remote: an object that is deleted or cut off afterwards goes unnoticed by `dvc status -c` and `dvc push`.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from jobs.sharing import repo
from jobs.sharing.remote import Cache, Remote, cache, objects, remote, stored_md5
from jobs.sharing.tracked import Named, Reader, Skipped, files, named
from pipeline.dvc_objects import object_name
from pipeline.errors import some
from pipeline.storage import DeniedError, Entry

AT_A_TIME = 8  # objects that are read or sent


class Problem(NamedTuple):
    """An object that is not in the remote as it should be. what: how it is. paths: the user's files that need it."""

    md5: str
    what: str
    paths: list[str]

    def line(self) -> str:
        """The problem as one line."""
        return f"{self.what}: {some(self.paths)} ({object_name(self.md5)})"


class Verified(NamedTuple):
    """What `verify` found.

    problems, skipped: what is wrong, and what was not looked at. objects: how many were looked at; by_contents, by_size, by_name:
    of those that are well, what of them is known. bytes: theirs in the remote. repaired: problems that are mended.
    """

    uri: str
    problems: list[Problem]
    skipped: list[Skipped]
    objects: int
    by_contents: int
    by_size: int
    by_name: int
    bytes: int
    repaired: list[Problem]


def verify(
    place: Path,
    name: str | None = None,
    *,
    all_revisions: bool = False,
    contents: bool = False,
    repair: bool = False,
) -> Verified:
    """Compare a remote of DVC with the objects that a checkout's .dvc files and dvc.lock name.

    place: a folder in the checkout. name: of the remote; None: the default one. all_revisions: what the branches and tags name,
    local and remote-tracking. contents: download what the server does not give the MD5 of. repair: send what is wrong from this
    machine's cache; `problems` are then those that are left. Raises UserError for mistakes in the settings and the files.
    """
    repository = repo.top(place)
    where, kept = remote(repository, name), cache(repository)
    commits = repo.revisions(repository, experiments=False) if all_revisions else {}
    listed = named(repository, where.name, [repository], commits)
    outputs = [each for each in listed if isinstance(each, Named)]
    check = _Check(where, kept, outputs)
    problems = check.problems(contents)
    repaired: list[Problem] = []
    if repair and problems:
        # The list of a folder's files goes last: DVC takes a folder whose list is there for whole.
        ordered = sorted(problems, key=lambda problem: problem.md5.endswith(".dir"))
        mended = {problem.md5 for problem in ordered if _mended(problem.md5, where, kept, check.held)}
        repaired = [problem for problem in problems if problem.md5 in mended]
        check = _Check(where, kept, outputs)
        problems = check.problems(contents)
    well = check.paths.keys() - {problem.md5 for problem in problems}
    by_contents = len(well & check.known)
    by_size = len(well & check.sized - check.known)
    skipped = [each for each in listed if isinstance(each, Skipped)]
    size = sum(check.held[md5].size for md5 in well)
    counts = (len(check.paths), by_contents, by_size, len(well) - by_contents - by_size)
    return Verified(where.store.uri, problems, skipped, *counts, size, repaired)


class _Check:
    """One comparison. paths: the user's files of each object. known, sized: the objects whose contents or bytes are right."""

    def __init__(self, where: Remote, kept: Cache, outputs: list[Named]) -> None:
        self.where, self.kept, self.outputs = where, kept, outputs
        self.reader = Reader(where.store, kept)
        self.held = objects(where.store)
        self.paths = files(outputs, self.reader)
        self.known: set[str] = set()
        self.sized: set[str] = set()

    def problems(self, contents: bool) -> list[Problem]:
        """What is wrong, sorted by the first of the user's files. contents: read what is known by size or name only."""
        wrong = {md5: "missing" for md5 in self.paths if md5 not in self.held}
        there = self.paths.keys() - wrong.keys()
        self.known = {md5 for md5 in there if self.held[md5].etag == md5.removesuffix(".dir")}
        suspects = self._sizes(there - self.known, wrong)
        # If the server gives the MD5 of some objects, then it does of all that were sent in one part.
        single = {md5 for md5 in there if len(self.held[md5].etag) == 32}
        suspects |= single if self.known else set()
        # A list of files is read in any case, and a damaged one names nothing.
        suspects |= {md5 for md5 in there if md5.endswith(".dir")}
        reading = sorted((there if contents else suspects) - self.known - wrong.keys())
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            for md5, held in zip(reading, pool.map(self._stored, reading), strict=True):
                if held == md5.removesuffix(".dir"):
                    self.known.add(md5)
                else:
                    wrong[md5] = "missing" if held is None else self._described(md5)
        found = [Problem(md5, what, self.paths[md5]) for md5, what in wrong.items()]
        return sorted(found, key=lambda problem: problem.paths)

    def _sizes(self, unknown: set[str], wrong: dict[str, str]) -> set[str]:
        """Compare the bytes of objects: adds to `wrong` and `sized`; returns the objects that must be read to know."""
        suspects = set()
        for out in self.outputs:
            if out.size is None:
                continue
            if not out.md5.endswith(".dir"):
                if out.md5 in unknown and self.held[out.md5].size != out.size:
                    wrong[out.md5] = _other_size(self.held[out.md5].size, out.size)
                self.sized.add(out.md5)
                continue
            children = (self.reader.folder(out.md5) or {}).values()
            if all(md5 in self.held for md5 in children):
                if sum(self.held[md5].size for md5 in children) == out.size:
                    self.sized |= set(children)
                else:
                    suspects |= unknown.intersection(children)
        for md5 in unknown - wrong.keys():
            path = self.kept.path(md5)
            if path.is_file():
                if path.stat().st_size == self.held[md5].size:
                    self.sized.add(md5)
                else:
                    suspects.add(md5)
        return suspects

    def _stored(self, md5: str) -> str | None:
        try:
            return stored_md5(self.where.store, object_name(md5))
        except FileNotFoundError:  # deleted since it was listed
            return None

    def _described(self, md5: str) -> str:
        """How an object whose contents are others differs. Its length is known if this machine has it whole."""
        if self.kept.whole(md5) and (size := self.kept.path(md5).stat().st_size) != self.held[md5].size:
            return _other_size(self.held[md5].size, size)
        return f"other contents ({self.held[md5].size:,} bytes)"


def _other_size(held: int, expected: int) -> str:
    return f"{'truncated' if held < expected else 'too long'} ({held:,} bytes instead of {expected:,})"


def _mended(md5: str, where: Remote, kept: Cache, held: dict[str, Entry]) -> bool:
    """Send an object from this machine's cache, if it is whole there, in the place of what the remote holds."""
    if not kept.whole(md5):
        return False
    name = object_name(md5)
    if md5 in held:
        with suppress(DeniedError):  # a key that may write and not delete replaces it as well
            where.store.remove(name)
    where.store.write(name, kept.path(md5))
    return True
