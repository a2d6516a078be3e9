"""What the commands of memoir print."""

import sys
from typing import Annotated

import typer

from pipeline.errors import printable

Json = Annotated[bool, typer.Option("--json", help="for machines")]


def say(text: str, *, problem: bool = False) -> None:
    """Print a line on stdout, or a problem on stderr. Control characters, which could steer the terminal, are written out."""
    (sys.stderr if problem else sys.stdout).write(f"{printable(text)}\n")
