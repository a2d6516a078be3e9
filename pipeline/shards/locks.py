"""Files that are locked by flock, and may be renamed or removed by others meanwhile."""

import fcntl
import os
from contextlib import suppress
from io import FileIO
from pathlib import Path


def is_at(file: FileIO, path: Path) -> bool:
    """Whether the open file still has this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def lock_file(path: Path) -> FileIO:
    """A file to lock. A lock needs no right to write, so the file may be another user's."""
    file = FileIO(os.open(path, os.O_RDONLY | os.O_CREAT, 0o644), "r")
    with suppress(PermissionError):
        os.fchmod(file.fileno(), 0o644)  # whatever the umask
    return file


def exclusively(path: Path) -> FileIO | None:
    """The file with an exclusive lock on it; None if another process uses it."""
    try:
        file = FileIO(path)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(file, path):
            return file
    except BlockingIOError:
        pass
    file.close()
    return None
