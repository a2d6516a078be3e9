"""What .cache holds, and the removal of built shards that no data set here needs."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.shards import kept
from pipeline.shards.format import RECIPES, read_shards_json


class Files(NamedTuple):
    """Some files. freed: the bytes that no other name keeps, such as a hard link in a data set or in DVC's cache."""

    number: int = 0
    bytes: int = 0
    freed: int = 0


def files(paths: Iterator[Path] | list[Path]) -> Files:
    """How many there are, and their bytes; those that vanish meanwhile do not count."""
    number = nbytes = freed = 0
    for path in paths:
        with suppress(FileNotFoundError):
            stat = path.stat()
            number, nbytes = number + 1, nbytes + stat.st_size
            freed += stat.st_size if stat.st_nlink == 1 else 0
    return Files(number, nbytes, freed)


def unneeded(data: Path) -> list[Path]:
    """The built shards, and the recipes, that no data set directly below `data` names, sorted.

    Raises OSError and UserError for a data set whose shards.json or recipes.json is missing or damaged: it may need any of them.
    """
    needed: set[str] = set()
    for folder in sorted(path.parent for path in data.glob("*/shards.json")):
        needed |= {shard["name"] for shard in read_shards_json(folder)["shards"]}
        needed |= {f"{recipe}.json" for recipe in kept.beside(folder.joinpath, RECIPES).values()}
    held = (*kept.STORE.glob("*.tar"), *kept.STORE.glob("recipes/*.json"))
    return sorted(path for path in held if path.name not in needed)


def prune(data: Path) -> Files:
    """Remove what `unneeded` finds; returns which shards these were. Raises UserError while a build runs."""
    with _alone():
        paths = unneeded(data)
        removed = files([path for path in paths if path.suffix == ".tar"])
        for path in paths:
            path.unlink()
    return removed


@contextmanager
def _alone() -> Iterator[None]:
    """Keep builds out of the store, which wait for the lock."""
    kept.STORE.mkdir(parents=True, exist_ok=True)
    with (kept.STORE / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{kept.STORE}: a build is running, which may need any shard; prune when it has ended"
            ) from None
        except OSError:
            raise UserError(
                f"{kept.STORE}: its file system has no locks to tell whether a build is running; remove the folder by hand "
                "when none is"
            ) from None
        yield
