"""One shard from a store into a file: tried again where a server fails, from the byte where it stopped, and verified."""

import hashlib
import random
import threading
import time
from collections.abc import Generator
from contextlib import closing
from io import FileIO

from pipeline.errors import UserError
from pipeline.patience import Pauses
from pipeline.storage import Storage, UnavailableError

RETRY_SECONDS = 90.0  # that one shard may lose to pauses, to tries without progress, and to another's failed tries
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between tries: the limit of the first, which doubles up to the longest
WRONG_TRIES = 3  # downloads with other contents than the listed ones; the network may be to blame for the first
JITTER = random.SystemRandom()  # a run's seeds do not decide the pauses, and the pauses do not advance its generators

Want = tuple[str, int, str]  # name in the store, bytes, sha256


class StoppedError(Exception):
    """A download was told to stop."""


def fill(file: FileIO, source: Storage, want: Want, lost: float, stop: threading.Event) -> None:
    """Write a shard's contents into an empty file, and check them. After a cut the next try begins where the last stopped.

    lost: seconds of `RETRY_SECONDS` that are used up already. stop: ends the download. Raises UserError for contents that
    cannot be fetched or are not the listed ones, and StoppedError.
    """
    name, nbytes, sha256 = want
    digest, position = hashlib.sha256(), 0
    tries = wrong = 0
    pauses = Pauses(FIRST_PAUSE, LONGEST_PAUSE)
    problem: UserError
    while True:
        began, before = time.monotonic(), position
        tries += 1
        try:
            if position < nbytes:
                with closing(_blocks(source, name, position)) as blocks:
                    for block in blocks:
                        if stop.is_set():
                            raise StoppedError
                        position += len(block)
                        if position > nbytes:
                            break
                        _write(file, block)
                        digest.update(block)
            if (position, digest.hexdigest()) == (nbytes, sha256):
                return
            wrong += 1
            if position == nbytes:
                what = f"its sha256 is {digest.hexdigest()}, shards.json lists {sha256}"
            else:
                what = (
                    f"{'more than ' * (position > nbytes)}{min(position, nbytes):,} bytes, shards.json lists {nbytes:,}"
                )
            problem = UserError(
                f"{source.uri}/{name}: {what} (tried {tries} times); upload that shard again, or fetch the shards.json "
                "that belongs to it"
            )
            if wrong == WRONG_TRIES:
                raise problem
            digest, position = hashlib.sha256(), 0
            file.seek(0)
        except UnavailableError as error:
            problem = UserError(f"{error} (given up after {tries} tries)")
            if position > before:
                pauses.begin_again()
            else:
                lost += time.monotonic() - began
        if lost >= RETRY_SECONDS:
            raise problem
        # Full jitter: the ranks of many nodes do not come back at the same moment.
        pause = JITTER.uniform(0, next(pauses))
        lost += pause
        if stop.wait(pause):
            raise StoppedError


def _blocks(source: Storage, name: str, start: int) -> Generator[bytes, None, None]:
    """The contents from `start` on; raises UserError, of the kind UnavailableError where another try may succeed."""
    where = f"{source.uri}/{name}"
    try:
        yield from source.chunks(name, start, once=True)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{where}: not in the store; upload the shards that shards.json lists") from None
    except PermissionError:
        raise UserError(f"{where}: may not be read by this user; change its permissions") from None
    except OSError as error:  # a network error of a mounted store
        raise UnavailableError(f"{where}: {error.strerror or error}; check the disk or the mount") from None


def _write(file: FileIO, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[file.write(rest) :]
