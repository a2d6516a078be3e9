"""DVC's remote as a store of files: where it is, what it holds, and this machine's cache beside it."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.dvc_objects import object_name
from pipeline.errors import UserError, nearest
from pipeline.storage import Entry, Storage, storage

OBJECTS = "files/md5/"
OBJECT = re.compile(r"files/md5/([0-9a-f]{2})/([0-9a-f]{30}(?:\.dir)?)")
SECRETS = ("access_key_id", "secret_access_key", "session_token", "password", "account_key", "connection_string")


class Remote(NamedTuple):
    """A remote of DVC's configuration. verify: whether DVC checks what it downloads. default: it is the one of `dvc pull`."""

    name: str
    store: Storage
    verify: bool
    default: bool


class Cache(NamedTuple):
    """DVC's objects on this machine."""

    root: Path

    def path(self, md5: str) -> Path:
        """Where the object is, if it is here."""
        return self.root / object_name(md5)

    def whole(self, md5: str) -> bool:
        """Whether the object is here with its own contents."""
        path = self.path(md5)
        return path.is_file() and file_md5(path) == md5.removesuffix(".dir")


def file_md5(path: Path) -> str:
    """The MD5 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def stored_md5(store: Storage, name: str) -> str:
    """The MD5 of a stored file's bytes, in hex, without holding them in memory. Raises FileNotFoundError."""
    digest = hashlib.md5(usedforsecurity=False)
    for chunk in store.chunks(name):
        digest.update(chunk)
    return digest.hexdigest()


def objects(store: Storage) -> dict[str, Entry]:
    """What a remote holds: MD5 -> the object of that name. Other names are left out."""
    found = ((OBJECT.fullmatch(entry.name), entry) for entry in store.entries(OBJECTS))
    return {match[1] + match[2]: entry for match, entry in found if match}


def configuration(repository: Path) -> Mapping[str, Any]:
    """DVC's settings in a repository, of all its files. Raises UserError without DVC, or for settings that it refuses."""
    from dvc.config import Config
    from dvc.exceptions import DvcException

    folder = repository / ".dvc"
    if not folder.is_dir():
        raise UserError(f"{repository}: no .dvc folder here; run this in a checkout of the team's repository")
    try:
        settings: Mapping[str, Any] = Config(dvc_dir=str(folder))
    except DvcException as error:
        raise UserError(f"{folder}/config: {' '.join(str(error).split())}") from None
    return settings


def cache(repository: Path) -> Cache:
    """DVC's cache of a repository."""
    return Cache(Path(configuration(repository)["cache"].get("dir") or repository / ".dvc" / "cache"))


def remote(repository: Path, name: str | None = None) -> Remote:
    """A remote by its name; None: the default one. Nothing is sent yet.

    Raises UserError for a remote that is not there, is neither a folder nor a bucket, has keys in DVC's configuration, or
    a profile that the environment does not name.
    """
    settings = configuration(repository)
    remotes, default = settings["remote"], settings["core"].get("remote")
    name = name or default
    if name is None:
        raise UserError(
            f"{repository}: DVC has no default remote; `memoir share init s3://bucket/prefix` sets one up"
            + (f", or name one with --remote: {', '.join(sorted(remotes))}" if remotes else "")
        )
    if name not in remotes:
        known = nearest(name, list(remotes)) if remotes else "there is none; `memoir share init` sets one up"
        raise UserError(f"{repository}: no remote {name!r} in DVC's configuration; {known}")
    chosen = remotes[name]
    if kept := [key for key in SECRETS if chosen.get(key)]:
        raise UserError(
            f"remote {name}: {kept[0]} is in DVC's configuration; remove it with `dvc remote modify --unset {name} {kept[0]}` "
            "(and --local), and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )
    profile = chosen.get("profile")
    if profile and os.environ.get("AWS_PROFILE") != profile:
        raise UserError(f"remote {name}: is used with the profile {profile!r}; set AWS_PROFILE={profile}")
    url = str(chosen["url"])
    check_address(url, "the remote's url")
    if "://" in url and not url.startswith("s3://"):
        raise UserError(
            f"remote {name}: {url} is neither a bucket (s3://) nor a folder, which is all that memoir looks into"
        )
    return Remote(name, storage(url, chosen.get("endpointurl")), bool(chosen.get("verify")), name == default)


def check_address(address: str, what: str) -> None:
    """Raise UserError for an address with a user or a password in it, without repeating them."""
    if "@" in address.partition("://")[2].partition("/")[0]:
        raise UserError(
            f"{what}: has a user or a password in it, which would be committed; leave out what is before the @, and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )
