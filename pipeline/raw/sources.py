"""Raw photographs in a bucket: a copy for whoever needs the folder, single files for the nodes of a cluster."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError
from pipeline.storage import Bucket, Entry, storage

MIRROR = Path(".cache/sources")  # <bucket>/<key> of every raw image that this machine has copied
THREADS = 16  # requests at a time; for a small file, most of the time is waiting


def is_remote(path: str) -> bool:
    """Whether a source or an image lies in a bucket."""
    return path.startswith("s3://")


def local_folder(root: str) -> Path:
    """The folder of a source: itself, or the copy of an s3:// URI, brought up to date.

    It copies files that are missing, of another size, or older in the copy, and removes files that the bucket lacks.
    Raises UserError for a bucket that cannot be read, for one without files, and for keys that cannot be files.
    """
    if not is_remote(root):
        return Path(root)
    bucket = _bucket(root)
    entries = [entry for entry in bucket.entries() if not entry.name.endswith("/")]  # those are "folders"
    if not entries:
        raise UserError(f"{root}: nothing there; check the name, or upload the data set")
    for entry in entries:
        parts = PurePosixPath(entry.name).parts
        if ".." in parts or "/".join(parts) != entry.name:
            raise UserError(f"{root}/{entry.name}: its key is no relative path; rename the object")
    folder = _copy_of(root)
    names = {entry.name for entry in entries}
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.relative_to(folder).as_posix() not in names:
            path.unlink()

    def fetch(entry: Entry) -> None:
        path = folder / entry.name
        if path.is_file() and (path.stat().st_size, int(path.stat().st_mtime)) == (entry.size, entry.modified):
            return
        try:
            bucket.download(entry.name, path)
        except (NotADirectoryError, IsADirectoryError, FileExistsError):
            raise UserError(f"{root}/{entry.name}: one object's key is the folder of another; rename it") from None
        # An object of this very second may be replaced within it, which its time would not show: it is copied once more.
        settled = time.time() - entry.modified > 2
        os.utime(path, (entry.modified, entry.modified) if settled else (0, 0))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fetch, entries))
    return folder


def read_source(path: str) -> bytes:
    """The bytes of a raw image, by its path or s3:// URI. Raises OSError, and UserError for a bucket that cannot be read."""
    if not is_remote(path):
        return Path(path).read_bytes()
    folder, _, name = path.rpartition("/")
    return _bucket(folder).read(name)


def local_file(path: str) -> Path:
    """Where an image of the last `local_folder` lies on this machine; for an s3:// URI its copy, which may be missing."""
    return _copy_of(path) if is_remote(path) else Path(path)


def fetched_file(path: str) -> Path:
    """`local_file`, copied from the bucket first where it is missing."""
    local = local_file(path)
    if is_remote(path) and not local.is_file():
        folder, _, name = path.rpartition("/")
        _bucket(folder).download(name, local)
    return local


def _bucket(uri: str) -> Bucket:
    place = storage(uri)
    assert isinstance(place, Bucket)
    return place


def _copy_of(uri: str) -> Path:
    return MIRROR / uri.removeprefix("s3://").rstrip("/")
