"""git, asked for one answer."""

import os
import subprocess
from pathlib import Path

from pipeline.errors import UserError

PLAIN = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}  # no question in the middle, and messages that are in English


class RefusalError(UserError):
    """git ended with another exit code than 0. said: its first line on stderr, empty if it said nothing."""

    def __init__(self, text: str, said: str) -> None:
        super().__init__(text)
        self.said = said


def git(*arguments: str, place: Path = Path(), data: bytes = b"") -> bytes:
    """What git prints. place: the folder that it runs in. data: for its standard input.

    Raises UserError in one line: RefusalError if git refuses, another if it is not there.
    """
    try:
        done = subprocess.run(
            ["git", "-C", str(place), *arguments], input=data, capture_output=True, env=os.environ | PLAIN
        )
    except FileNotFoundError:
        raise UserError("git: not found; install it") from None
    except OSError as error:
        raise UserError(f"git: {error.strerror}") from None
    if done.returncode:
        said = next(iter(done.stderr.decode(errors="replace").strip().splitlines()), "").removeprefix("fatal: ")
        where = "" if place == Path() else f"{place}: "
        raise RefusalError(f"{where}git {arguments[0]}: {said or f'exit code {done.returncode}'}", said)
    return done.stdout
