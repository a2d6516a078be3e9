"""The folder of a reproduction: a clone at the training's commit, the environment that runs it, and a store of its own.

<folder>/reproduce.json   which version this is of
<folder>/memoir/          the clone, with its data/ and runs/
<folder>/store, shards    what it trains and builds
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

from jobs.documents import Document, Line, Sha256, read_document
from jobs.project import without_credentials
from jobs.reproducing.original import Original
from jobs.training.record import LIBRARIES
from pipeline.config import parse_json
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.git import git
from pipeline.shards.locks import exclusively

MARK = "reproduce.json"
# not for what runs here: another cluster, and what keeps the current directory out of Python's path
LEFT_OUT = ("RAY_ADDRESS", "PYTHONSAFEPATH", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV")
VERSIONS = (
    "import json, sys; from importlib.metadata import version; print(json.dumps([version(n) for n in sys.argv[1:]]))"
)
PLAN = """
import json, sys
from jobs.training.run import plan_run
try:
    planned = plan_run(sys.argv[1], data="data", store=sys.argv[2], overrides=sys.argv[3:])
except ValueError as error:
    sys.exit(f"memoir: {error}")
print(json.dumps([planned.run, planned.recipe.model_dump(mode="json")]))
"""


class Mark(Document):
    """reproduce.json: the version, all that it consists of, and where its code is from."""

    version: Line
    sums: Sha256
    repository: Line


@dataclass(frozen=True)
class Place:
    """root: the folder, absolute. python: what runs the clone's code. environment: its variables."""

    root: Path
    python: str
    environment: dict[str, str]

    @property
    def clone(self) -> Path:
        return self.root / "memoir"

    @property
    def store(self) -> Path:
        return self.root / "store"

    def run(self, *arguments: str) -> None:
        """Run a module with the clone's code, its output on stderr. Raises UserError if it fails."""
        command = [self.python, "-m", *arguments]
        code = subprocess.run(
            command, cwd=self.clone, env=self.environment, stdin=subprocess.DEVNULL, stdout=2
        ).returncode
        if code:
            raise UserError(
                f"{self.clone}: `{' '.join(arguments[:3])}` ended with exit code {code}, see above; when that is mended, the "
                "same command goes on from there"
            )

    def ask(self, code: str, *arguments: str) -> Any:
        """What a piece of Python prints as JSON on its last line, run with the clone's code. Raises UserError if it fails."""
        command = [self.python, "-c", code, *arguments]
        done = subprocess.run(
            command, cwd=self.clone, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        lines = done.stdout.decode(errors="replace").splitlines()
        if done.returncode or not lines:
            raise UserError(f"{self.clone}: its code gave no answer, see above")
        return parse_json(lines[-1].encode(), f"{self.clone}: the answer of its code")

    @cached_property
    def libraries(self) -> dict[str, str]:
        """The versions of the environment, by the names that provenance.json has for them."""
        return dict(zip(LIBRARIES, map(str, self.ask(VERSIONS, *LIBRARIES.values())), strict=True))

    def plan(self, recipe: str, overrides: list[str]) -> tuple[str, dict[str, Any]]:
        """The name of the run that the clone makes of a recipe, and the recipe resolved. Nothing is computed yet."""
        run, resolved = self.ask(PLAN, recipe, str(self.store), *overrides)
        return str(run), dict(resolved)

    def changed(self) -> list[str]:
        """The clone's files that are not those of its commit."""
        listed = git("status", "--porcelain", "-z", "--no-renames", "--untracked-files=no", place=self.clone)
        return [line[3:] for line in listed.decode(errors="replace").split("\0") if line]

    def head(self) -> str:
        """The clone's commit."""
        return git("rev-parse", "HEAD", place=self.clone).decode().strip()


def claim(root: Path, original: Original, url: str) -> FileIO:
    """Make the folder that of this version, for this process as long as it has the file that is returned.

    root: absolute; it is empty, or an earlier call has begun the same in it. Raises UserError for another folder, and for one
    that another process works in.
    """
    path = root / MARK
    mark = {"version": original.uri, "sums": original.sums, "repository": without_credentials(url)}
    if not path.is_file():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UserError(f"{root}: is not empty, and not a reproduction of this version; name another with --into")
        write_bytes(path, (json.dumps(mark, indent=1) + "\n").encode())
    held = read_document(path.read_bytes(), Mark, str(path), "name another folder with --into")
    if (held["sums"], held["repository"]) != (mark["sums"], mark["repository"]):
        raise UserError(
            f"{root}: is the reproduction of {held['version']} from {held['repository']}; name another folder with --into"
        )
    claimed = exclusively(path)
    if claimed is None:
        raise UserError(f"{root}: another process works in it; wait for it, or name another folder with --into")
    return claimed


def clone(root: Path, original: Original, url: str) -> None:
    """Have the clone in the folder, at the training's commit, whole or not at all.

    Raises UserError for a repository that cannot be cloned, and for a commit that is in none of its branches and tags.
    """
    if (root / "memoir").exists():
        return
    half = root / ".clone"
    shutil.rmtree(half, ignore_errors=True)
    git("clone", "--quiet", "--no-checkout", "--", url, str(half))
    # A clone of a folder may have commits that no branch of it has: anybody could have left them there.
    named = ("for-each-ref", "--count=1", "--contains", original.commit)
    if not _known(half, original.commit) or not git(*named, place=half).strip():
        raise UserError(
            f"{without_credentials(url)}: has no commit {original.commit} in a branch or a tag, from which {original.uri} was "
            "trained; have whoever trained it push it, or name another --repository"
        )
    git("checkout", "--quiet", "--detach", original.commit, place=half)
    half.rename(root / "memoir")


def _known(repository: Path, commit: str) -> bool:
    found = git("cat-file", "--batch-check", place=repository, data=f"{commit}\n".encode()).decode().split()
    return found[1:2] == ["commit"]


def environment(root: Path, *, here: bool) -> Place:
    """What runs the clone's code. here: the Python that is running; else one with what the commit's requirements.lock says.

    Raises UserError if that cannot be made.
    """
    variables = {key: value for key, value in os.environ.items() if key not in LEFT_OUT} | {"DVC_NO_ANALYTICS": "1"}
    copy = root / "memoir"
    if here:
        return Place(root, sys.executable, variables)
    apart = {key: value for key, value in variables.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    if lacking := [name for name in ("Makefile", "requirements.lock") if not (copy / name).is_file()]:
        raise UserError(
            f"{copy}: has no {' and no '.join(lacking)} that would make its environment; --here takes the one that is running"
        )
    command = ["make", "--no-print-directory", "setup", f"PYTHON={sys.executable}"]
    try:
        code = subprocess.run(command, cwd=copy, env=apart, stdin=subprocess.DEVNULL, stdout=2).returncode
    except FileNotFoundError:
        raise UserError("make: not found; install it, or take the environment that is running with --here") from None
    if code:
        raise UserError(
            f"{copy}: `make setup` ended with exit code {code}, see above; --here takes the environment that is running"
        )
    return Place(root, str(copy / ".venv/bin/python"), apart)
