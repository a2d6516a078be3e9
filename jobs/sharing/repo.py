"""What git knows of a repository: its revisions, their files, and whether the other side has more."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError, some
from pipeline.git import git


class Blob(NamedTuple):
    """A file of a revision. id: git's name of its contents. path: relative to the top of the repository."""

    id: str
    path: str
    revision: str


def top(place: Path) -> Path:
    """The top folder of the repository that a folder is in. Raises UserError outside one."""
    return Path(git("rev-parse", "--show-toplevel", place=place).decode().rstrip("\n"))


def working_copies(repository: Path) -> list[Path]:
    """The repository's folder, its other worktrees, and the copies in which DVC runs experiments."""
    listed = git("worktree", "list", "--porcelain", "-z", place=repository).decode().split("\0")
    found = [Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")]
    return [
        each
        for each in {
            *found,
            *(each.parent for depth in ("*", "*/*") for each in repository.glob(f".dvc/tmp/exps/{depth}/.git")),
        }
        if each.is_dir()
    ]


def revisions(repository: Path, *, experiments: bool) -> dict[str, str]:
    """Commit -> a name of it: HEAD, branches, remote-tracking branches and tags. experiments: and all other refs, as refs/exps."""
    wanted = ["refs"] if experiments else ["refs/heads", "refs/remotes", "refs/tags"]
    form = "%(objectname) %(objecttype) %(*objectname) %(*objecttype) %(refname:short)"
    found: dict[str, str] = {}
    for line in git("for-each-ref", f"--format={form}", *wanted, place=repository).decode().splitlines():
        commit, kind, peeled, peeled_kind, name = line.split(" ", 4)
        if "commit" in (kind, peeled_kind):
            found.setdefault(peeled or commit, name)
    listed = git("worktree", "list", "--porcelain", place=repository).decode().splitlines()
    heads = [line.removeprefix("HEAD ") for line in listed if line.startswith("HEAD ")]
    for head in heads:
        if head.strip("0"):  # a repository without commits
            found.setdefault(head, "HEAD")
    return found


def tracked_files(repository: Path, revision: str | None) -> dict[str, str]:
    """The path of each file of a revision -> git's name of its contents. revision: None for the index of the working copy."""
    if revision is None:
        lines = git("ls-files", "-z", "--stage", ":/", place=repository).split(b"\0")
    else:
        lines = git("ls-tree", "-r", "-z", "--full-tree", revision, place=repository).split(b"\0")
    found = {}
    for line in filter(None, lines):
        columns, path = line.decode(errors="surrogateescape").split("\t", 1)
        found[path] = columns.split()[1 if revision is None else 2]
    return found


def in_history(repository: Path, commits: Iterable[str], patterns: tuple[str, ...]) -> list[Blob]:
    """All versions of the files of these names in these commits and in all before them.

    Raises UserError for a clone that lacks commits behind them.
    """
    if git("rev-parse", "--is-shallow-repository", place=repository).strip() == b"true":
        raise UserError(
            f"{repository}: a shallow clone, which lacks the commits before; run `git fetch --unshallow`, or say --tips"
        )
    paths = [f":(top,glob)**/{pattern}" for pattern in patterns]
    names = ("\n".join(commits) + "\n").encode()
    listed = git(
        "rev-list",
        "--objects",
        "--filter=object:type=blob",
        "--full-history",
        "--stdin",
        "--",
        *paths,
        place=repository,
        data=names,
    )
    found = []
    for line in listed.decode(errors="surrogateescape").splitlines():
        name, _, path = line.partition(" ")
        if any(Path(path).match(pattern) for pattern in patterns):
            found.append(Blob(name, path, "history"))
    return found


def contents(repository: Path, blob: str) -> bytes:
    """The contents of a file of a revision."""
    return git("cat-file", "blob", blob, place=repository)


def unfetched(repository: Path) -> dict[str, str]:
    """Commit -> name, of all that the remote repositories of git have now. Raises UserError for those that are not here."""
    found: dict[str, str] = {}
    for remote in git("remote", place=repository).decode().split():
        listed = git("ls-remote", "--quiet", remote, place=repository).decode().splitlines()
        named = [line.split("\t", 1) for line in listed]
        refs = {name.removesuffix("^{}"): commit for commit, name in named if name.startswith("refs/")}
        refs = {n: c for n, c in refs.items() if n.startswith(("refs/heads/", "refs/tags/", "refs/exps/"))}
        asked = "".join(f"{commit}^{{}}\n" for commit in refs.values()).encode()
        answers = git("cat-file", "--batch-check", data=asked, place=repository).decode().splitlines()
        lacking = [name for name, answer in zip(refs, answers, strict=True) if answer.endswith(" missing")]
        if lacking:
            raise UserError(
                f"{repository}: {remote} has commits that are not here: {some(lacking)}; run "
                f"`git fetch {remote} '+refs/heads/*:refs/remotes/{remote}/*' '+refs/tags/*:refs/tags/*' "
                "'+refs/exps/*:refs/exps/*'` and try again"
            )
        for name, answer in zip(refs, answers, strict=True):
            if answer.split()[1] == "commit":
                found.setdefault(answer.split()[0], f"{remote}: {name}")
    return found


def changed(repository: Path, files: Iterable[str]) -> list[str]:
    """Which of these files differ from the last commit, or are not in it."""
    listed = git("status", "--porcelain", "-z", "--", *files, place=repository).decode().split("\0")
    return [line[3:] for line in listed if line]
