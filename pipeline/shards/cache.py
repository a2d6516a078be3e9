"""Local copies of the shards that lie in a bucket or another store, shared by all processes of a node.

    <folder>/<sha256[:2]>/<sha256>         a shard: it has this name once its length and sha256 are right
    <folder>/<sha256[:2]>/<sha256>.part    the same, still coming; it has its full length from the start
    <folder>/<sha256[:2]>/<sha256>.lock    held by the process that fetches it
    <folder>/.space                        held while room is made

All locks are flock's: they end with the process that holds them, so a killed process blocks nobody. A process that uses
a shard holds a shared lock on the file itself, and only a file that can be locked exclusively is removed to make room.
"""

import errno
import fcntl
import hashlib
import heapq
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.shards.download import Want, fill
from pipeline.shards.locks import exclusively, is_at, lock_file
from pipeline.storage import BLOCK, Storage

SPACE_SECONDS = 20.0  # how long `get` waits for leases to end; for downloads in its way it waits without limit
POLL_SECONDS = 0.2  # between two checks whether they have ended
PREFETCH_POLL_SECONDS = 2.0  # the same for threads that fetch ahead; they also check when this process releases a shard
PREFETCH_THREADS = 4
VERIFIED = 10**18  # mtime, in ns, that marks a file with the right sha256; writing into the file changes it


class Lease:
    """A shard that stays on the disk until it is released or the process ends."""

    path: Path

    def __init__(self, path: Path, file: FileIO, ended: Callable[[], None]) -> None:
        self.path, self._file, self._ended, self._owner = path, file, ended, os.getpid()

    def release(self) -> None:
        """Allow the removal of the file from now on. A second call does nothing."""
        if self._file.closed:
            return
        mine = os.getpid() == self._owner  # a forked child shares the lock with its parent
        if mine:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()
        if mine:
            self._ended()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class _Found(NamedTuple):
    """A file that the cache holds: when it was last asked for, its bytes, its path, and its shard."""

    used: int  # ns
    nbytes: int
    path: Path
    sha256: str


class _NoRoomError(Exception):
    """The files in use leave too little of the limit."""

    def __init__(self, in_use: int, coming: int) -> None:
        """in_use: bytes. coming: how many of them belong to downloads, which end by themselves."""
        super().__init__(in_use, coming)
        self.in_use, self.coming = in_use, coming


class ShardCache:
    """A node's copies of remote shards, by content: the same shard of two datasets is one file.

    If several threads and processes ask for a shard, one fetches it and the others wait. A file is verified by its
    sha256 when it arrives, and again if its mtime has changed since.
    limit_bytes: for all files together, including unfinished ones. The least recently used are removed first, those that
    this process asked to prefetch last, and none that a process on this node holds a lease of. None: no limit.
    The folder may be shared by several users if its group may write: its subfolders take its permissions. A read-only
    folder serves what it has.
    Raises UserError for a folder that cannot be made and for a limit below one byte.
    """

    def __init__(self, folder: Path, *, limit_bytes: int | None = None) -> None:
        if limit_bytes is not None and limit_bytes < 1:
            raise UserError(
                f"{folder}: a cache limited to {limit_bytes} bytes holds nothing; give it room, or no limit"
            )
        self.folder, self.limit = folder, limit_bytes
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)
        self._changed = threading.Condition()  # guards what follows
        self._closed = threading.Event()
        self._source: Storage | None = None
        self._wanted: dict[str, tuple[int, Want]] = {}  # by sha256: rank in the order of need; until `get` asks for it
        self._queue: list[tuple[int, str]] = []  # heap of the wanted shards to fetch: rank, sha256
        self._turn: str | None = None  # the sha256 that a thread makes room for: the next waits, so that none overtakes
        self._threads: list[threading.Thread] = []

    def get(self, source: Storage, name: str, nbytes: int, sha256: str) -> Lease:
        """The shard `name` of `source`, which is fetched first if it is missing or damaged.

        nbytes, sha256: what shards.json lists. Server errors and cut connections are tried again for `RETRY_SECONDS`,
        from the byte where they stopped. Raises UserError if it cannot be fetched, does not have these
        contents, or finds no room.
        """
        want = name, nbytes, sha256
        where = f"{source.uri}/{name}"
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise UserError(f"{where}: {sha256!r} is no sha256; its shards.json is damaged, fetch it again")
        if not self._fits(nbytes):
            raise UserError(
                f"{where}: its {nbytes:,} bytes exceed the limit of {self.limit:,} bytes of the cache {self.folder}; "
                "raise the limit, or build smaller shards"
            )
        with self._explained(want):
            file = self._lease(want) or self._fetch(source, want)
        with self._changed:
            self._wanted.pop(sha256, None)
        return Lease(self._path(sha256), file, self._ended)

    def prefetch(self, source: Storage, wanted: Sequence[Want]) -> None:
        """Fetch these in the background, in this order, as far as the limit allows; forget what was wanted before.

        wanted: (name, bytes, sha256), in the order of need. `get` reports what fails here.
        """
        with self._changed:
            self._source = source
            self._wanted = {}
            for want in wanted:
                self._wanted.setdefault(want[2], (len(self._wanted), want))
            self._queue = [(rank, sha256) for sha256, (rank, _) in self._wanted.items()]
            if not self._threads and not self._closed.is_set():
                for number in range(PREFETCH_THREADS):
                    self._threads.append(threading.Thread(target=self._work, name=f"cache-{number}", daemon=True))
                    self._threads[-1].start()
            self._changed.notify_all()

    def close(self) -> None:
        """Stop prefetching. Leases stay as they are."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        deadline = time.monotonic() + 5
        for thread in self._threads:  # a thread that waits for a silent server ends by itself later
            thread.join(max(0, deadline - time.monotonic()))

    # one shard

    def _path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256

    def _lease(self, want: Want) -> FileIO | None:
        """The shard with a shared lock on it, if it is here and whole."""
        _, nbytes, sha256 = want
        path = self._path(sha256)
        try:
            file = FileIO(path)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            if is_at(file, path) and _whole(file, nbytes, sha256):
                _stamp(file)
                return file
        except BaseException:
            file.close()
            raise
        file.close()
        return None

    def _fetch(self, source: Storage, want: Want) -> FileIO:
        """The shard with a shared lock on it, downloaded by this thread unless another is faster."""
        began = time.monotonic()
        with self._locked(want, wait=True):
            waited = time.monotonic() - began
            return self._lease(want) or self._download(source, want, waited, threading.Event())

    def _download(
        self, source: Storage, want: Want, waited: float, stop: threading.Event, rank: int | None = None
    ) -> FileIO:
        """The shard with a shared lock on it. The caller holds its .lock, and it is missing or damaged.

        waited: seconds of `RETRY_SECONDS` that are already used. rank: as in `_room`.
        """
        path = self._path(want[2])
        path.unlink(missing_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.unlink(missing_ok=True)  # left by a killed process
        file = self._reserve(want, part, rank)
        self._next(want[2])
        try:
            fill(file, source, want, waited, stop)
            _stamp(file)
            os.fsync(file.fileno())
            with self._space():  # its holder sees the file once, by either name
                part.rename(path)  # this process has its lease before the file has its name
        except BaseException:
            part.unlink(missing_ok=True)
            file.close()
            raise
        return file

    @contextmanager
    def _locked(self, want: Want, wait: bool) -> Iterator[bool]:
        """Hold the .lock of a shard, as True. Without `wait`, False if another process holds it."""
        path = self._path(want[2])
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(PermissionError):  # another user was faster
                path.parent.chmod(stat.S_IMODE(self.folder.stat().st_mode))
        path = path.with_name(f"{path.name}.lock")
        while True:
            with lock_file(path) as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError:
                    yield False
                    return
                if is_at(lock, path):  # else the previous holder has removed it
                    try:
                        yield True
                    finally:
                        with suppress(PermissionError):
                            path.unlink(missing_ok=True)
                        fcntl.flock(lock, fcntl.LOCK_UN)  # a child forked meanwhile would keep it
                    return

    # room

    def _reserve(self, want: Want, part: Path, rank: int | None) -> FileIO:
        """An empty .part of the shard's length, with a shared lock on it, once there is room for it.

        rank: as in `_room`; with one, it does not wait. Raises _NoRoomError.
        """
        _, nbytes, _ = want
        deadline = time.monotonic() + SPACE_SECONDS
        while True:
            with self._space():
                try:
                    self._room(nbytes, rank)
                except _NoRoomError as error:
                    late = time.monotonic() >= deadline
                    if rank is not None or (late and not self._fits(error.in_use - error.coming + nbytes)):
                        raise
                else:
                    file = FileIO(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), "r+")
                    fcntl.flock(file, fcntl.LOCK_SH)
                    os.fchmod(file.fileno(), 0o644)  # whatever the umask
                    file.truncate(nbytes)  # from now on all other processes count these bytes
                    return file
            time.sleep(POLL_SECONDS)

    @contextmanager
    def _space(self) -> Iterator[None]:
        """Hold .space."""
        with lock_file(self.folder / ".space") as space:
            fcntl.flock(space, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(space, fcntl.LOCK_UN)

    def _room(self, nbytes: int, rank: int | None) -> None:
        """Make room for `nbytes` with no more removals than needed; or remove nothing and raise _NoRoomError.

        The caller holds .space. rank: the rank of the wanted shard that needs the room; shards needed before it stay.
        None: somebody waits for it.
        """
        found = list(self._files()) if self.limit is not None else []
        in_use = sum(each.nbytes for each in found)  # minus what turns out to be free
        with self._changed:
            ranks = {sha256: place for sha256, (place, _) in self._wanted.items()}
        if rank is not None:
            found = [each for each in found if ranks.get(each.sha256, rank) >= rank]
        # First what killed processes left, then what is not wanted, oldest first, then what is needed last.
        found.sort(
            key=lambda each: (each.path.suffix != ".part", each.sha256 in ranks, -ranks.get(each.sha256, 0), each.used)
        )
        held: list[tuple[FileIO, _Found]] = []
        try:
            for each in found:
                if self._fits(in_use + nbytes):
                    break
                file = exclusively(each.path)
                if file:
                    held.append((file, each))
                    in_use -= each.nbytes
            if not self._fits(in_use + nbytes):
                free = {each.path for _, each in held}
                coming = [each.nbytes for each in found if each.path.suffix == ".part" and each.path not in free]
                raise _NoRoomError(in_use, sum(coming))
            with self._changed:
                for _, each in held:
                    each.path.unlink(missing_ok=True)
                    if each.sha256 in self._wanted:
                        heapq.heappush(self._queue, (self._wanted[each.sha256][0], each.sha256))
                        self._changed.notify_all()
        finally:
            for file, _ in held:
                file.close()

    def _fits(self, nbytes: int) -> bool:
        return self.limit is None or nbytes <= self.limit

    def _files(self) -> Iterator[_Found]:
        """All files in the cache, finished or unfinished."""
        for folder in os.scandir(self.folder):
            if re.fullmatch(r"[0-9a-f]{2}", folder.name):
                for entry in os.scandir(folder):
                    match = re.fullmatch(r"([0-9a-f]{64})(\.part)?", entry.name)
                    if match:
                        with suppress(FileNotFoundError):  # it was finished or given up meanwhile
                            status = entry.stat()
                            yield _Found(status.st_atime_ns, status.st_size, Path(entry.path), match[1])

    # ahead of need

    def _work(self) -> None:
        """Fetch the wanted shards one after another."""
        while True:
            with self._changed:
                if self._closed.is_set():
                    return
                while self._queue and self._queue[0][1] not in self._wanted:  # `get` was faster
                    heapq.heappop(self._queue)
                if self._turn or not self._queue:
                    self._changed.wait()
                    continue
                rank, sha256 = heapq.heappop(self._queue)
                self._turn = sha256
                source, wanted = self._source, self._wanted
                want = wanted[sha256][1]
            assert source is not None
            try:
                file = self._lease(want)
                if file is None:
                    with self._locked(want, wait=False) as mine:
                        if mine:
                            file = self._lease(want) or self._download(source, want, 0, self._closed, rank)
                if file:
                    file.close()
            except _NoRoomError:
                with self._changed:
                    if self._wanted is wanted:
                        heapq.heappush(self._queue, (rank, sha256))
                    self._changed.wait(PREFETCH_POLL_SECONDS)
            except Exception:
                pass  # `get` meets it again, in a thread that can report it
            finally:
                self._next(sha256)

    def _next(self, sha256: str) -> None:
        """End the turn of this shard."""
        with self._changed:
            if self._turn == sha256:
                self._turn = None
                self._changed.notify_all()

    def _ended(self) -> None:
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def _explained(self, want: Want | None = None) -> Iterator[None]:
        """Turn the disk's errors into UserError."""
        place, needed = self.folder, f" for the {want[1]:,} bytes of {want[0]}" if want else ""
        try:
            yield
        except _NoRoomError as error:
            raise UserError(
                f"{place}: no room{needed}: {error.in_use:,} bytes are in use, of a limit of {self.limit:,}; raise the "
                "limit of the cache"
            ) from None
        except OSError as error:
            where = error.filename or place
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"{place}: no space on the disk{needed}; free some, lower the limit of the cache, or put it elsewhere"
                ) from None
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise UserError(
                    f"{where}: {os.strerror(error.errno).lower()}{needed}; put the cache elsewhere, or let its owner share "
                    f"it with your group: chmod -R g+rwX {place}"
                ) from None
            if error.errno in (errno.EEXIST, errno.ENOTDIR):
                raise UserError(f"{where}: not a folder; put the cache elsewhere") from None
            if error.errno == errno.ENOENT:
                raise UserError(
                    f"{where}: removed while in use{needed}; leave {place} to the cache, and try again"
                ) from None
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise UserError(
                    f"{place}: its file system has no locks; put the cache on a disk of this node"
                ) from None
            raise


def _whole(file: FileIO, nbytes: int, sha256: str) -> bool:
    """Whether a file has these contents; it is read only if it was written to since the last check."""
    status = os.fstat(file.fileno())
    if status.st_size != nbytes:
        return False
    if status.st_mtime_ns == VERIFIED:
        return True
    digest = hashlib.sha256()
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.hexdigest() == sha256


def _stamp(file: FileIO) -> None:
    """Record that the contents are right, and used now."""
    with suppress(PermissionError):  # the file is another user's, who records it
        os.utime(file.fileno(), ns=(time.time_ns(), VERIFIED))
