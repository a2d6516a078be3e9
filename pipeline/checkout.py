"""The checkout whose code a command runs: that of the current directory, where there is one; and whether DVC made it."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from pipeline.console import tell

MODULES = {"memoir": "memoir.py", "pipeline": "pipeline/__init__.py", "jobs": "jobs/__init__.py"}


def hand_over(arguments: list[str]) -> None:
    """If the current directory is a checkout of memoir, and not the one that is running, run its code in the place of this.

    The command `memoir` imports the checkout that was installed into its environment. A worktree, a second clone, and the
    copy in which DVC runs an experiment have code, tasks and recipes of their own. This says so on stderr, and does not return.
    arguments: those of the command, without its name.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed
        return
    files = [here / file for file in MODULES.values()]
    if not all(file.is_file() for file in files):
        return
    specs = [find_spec(module) for module in MODULES]
    running = [Path(spec.origin).resolve() if spec and spec.origin else None for spec in specs]
    if running == [file.resolve() for file in files]:
        return
    # This variable keeps the current directory out of Python's path: the command would find the same code again.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    tell(f"memoir: runs the code of this directory, {here}")
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", "memoir", *arguments], environment)


def below_experiments() -> Path | None:
    """The folder <project>/.dvc/tmp/exps, if the current directory is in it: DVC runs experiments in copies there."""
    return next((folder for folder in Path.cwd().parents if folder.parts[-3:] == (".dvc", "tmp", "exps")), None)
