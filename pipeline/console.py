"""What memoir prints."""

import sys

from pipeline.errors import printable


def say(text: str) -> None:
    """Print a line of a command's result. Control characters, which could steer the terminal, are written out."""
    sys.stdout.write(f"{printable(text)}\n")


def tell(text: str) -> None:
    """Print a line beside the result, on stderr: a problem, or what is being done. As `say` else."""
    sys.stderr.write(f"{printable(text)}\n")
