"""What a command finds in the project it runs in: git's state, DVC's remote, and whether DVC runs an experiment."""

import configparser
import getpass
import hashlib
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from pipeline.checkout import below_experiments
from pipeline.console import tell
from pipeline.errors import UserError, printable
from pipeline.git import git
from pipeline.shards.format import file_sha256


class Code(NamedTuple):
    """The state of the git repository that the current directory is in; None where it is not known.

    repository: the URL of its remote, without credentials. dirty: whether anything but dvc.lock differs from the commit, and
    diff: the sha256 of those differences.
    """

    repository: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    diff: str | None = None


def in_experiment() -> bool:
    """Whether this is a stage of an experiment: DVC says so to its stages, and has copies of its own for them."""
    return bool(os.environ.get("DVC_EXP_NAME") or os.environ.get("DVC_EXP_BASELINE_REV") or below_experiments())


def pointers_only(store: str) -> str | None:
    """A line for who has a team and keeps checkpoints to himself: DVC has a default remote, and the store is a folder."""
    if "://" in store and not store.startswith("file://"):
        return None
    remote = None
    for name in ("config", "config.local"):
        settings = configparser.ConfigParser(interpolation=None, strict=False, allow_no_value=True)
        try:
            settings.read(Path(".dvc") / name, "utf-8")
        except (configparser.Error, UnicodeDecodeError):  # DVC says what is wrong with it
            continue
        remote = settings.get("core", "remote", fallback=remote)
    if not remote:
        return None
    return (
        f"{store}: a folder of this machine, so that colleagues who pull from the DVC remote {remote} get pointers without the "
        "checkpoints and models; `memoir share init s3://...` makes a store that all have"
    )


def now() -> str:
    """The time in UTC, as records state it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def author() -> str:
    """Who works here: git's name and address, or the login. Never fails."""
    name, address = _git("config", "user.name")[0], _git("config", "user.email")[0]
    if name and address:
        known = f"{name} <{address}>"
    else:
        try:
            known = name or address or getpass.getuser()
        except (OSError, KeyError, ImportError):  # a user without a name, as in containers
            known = f"uid {os.getuid()}"
    return printable(known)[:200]


def code() -> Code:
    """The state of the code in the current directory. Where it cannot be told whole, one line on stderr says why."""
    top, problem = _git("rev-parse", "--show-toplevel")
    if top is None:
        tell(f"which code this is will not be recorded: {problem}")
        return Code()
    if Path(top).resolve() != Path.cwd().resolve():
        tell(f"a folder of the larger repository {top}: its commit is recorded, and changes below this folder alone")
    commit, _ = _git("rev-parse", "--verify", "HEAD")
    if commit is None:
        tell(f"which code this is will not be recorded: {top} has no commit")
        return Code(repository_url())
    diff = _differences()
    return Code(
        repository_url(),
        commit,
        None if diff is None else bool(diff),
        hashlib.sha256(diff).hexdigest() if diff else None,
    )


def _differences() -> bytes | None:
    """What differs from the commit, below the current directory; None if git does not say."""
    # dvc.lock is rewritten while the stages run, and holds nothing that a model is made from
    below = ("--", ".", ":(exclude)dvc.lock")
    changed = _output("diff", "--binary", "--no-ext-diff", "--no-textconv", "HEAD", *below)
    new = _output("ls-files", "--others", "--exclude-standard", "-z", *below)
    if changed is None or new is None:
        return None
    for name in sorted(filter(None, new.split(b"\0"))):
        path = Path(os.fsdecode(name))
        contents = file_sha256(path) if path.is_file() and not path.is_symlink() else "not a file"
        changed += name + b"\0" + contents.encode() + b"\n"
    return changed


def repository_url() -> str | None:
    """The URL of the git remote of the current directory, without credentials; None without one."""
    url = full_url()
    return without_credentials(url) if url else None


def full_url() -> str | None:
    """The same as git has it, for git alone: there may be a password in it."""
    names = (_git("remote")[0] or "").split()
    return _git("remote", "get-url", "origin" if "origin" in names else names[0])[0] if names else None


def without_credentials(url: str) -> str:
    """A repository's URL as it may be shown and recorded."""
    return printable(re.sub("[?#].*", "", re.sub("//[^/]*@", "//", url)))[:1000]


def _git(*arguments: str) -> tuple[str | None, str]:
    """What git prints, or None and why it does not."""
    try:
        return git(*arguments).decode(errors="replace").strip(), ""
    except UserError as error:
        return None, str(error)


def _output(*arguments: str) -> bytes | None:
    try:
        return git(*arguments)
    except UserError:
        return None
