"""A git revision's data: where DVC's cache or remote has it."""

import os
from pathlib import Path

from pipeline.dvc_objects import DvcFolder, dataset_storage
from pipeline.errors import UserError
from pipeline.git import RefusalError, git
from pipeline.params import FILE, is_of_the_past
from pipeline.revisions.lock import Lock, parse
from pipeline.storage import Bucket, Folder, Storage, storage

SCHEME = "dvc://"  # of a revision where a dataset's place is asked for: dvc://v1.2


class Revision:
    """What a git revision of the project in the current directory says of its data.

    name: as the user gave it. commit: its sha1. outs: the md5 of what the stages made, by path; that of a folder ends in .dir.
    """

    def __init__(self, name: str) -> None:
        """Raises UserError if git has no such revision, if it has no dvc.lock, or if that is damaged."""
        self.name = name
        self.commit = _git("rev-parse", "--quiet", "--verify", f"{name}^{{commit}}", name=name).decode().strip()
        data = _git(
            "show",
            f"{self.commit}:./dvc.lock",
            name=name,
            absent=f"{name}: has no dvc.lock, so nothing was built there",
        )
        lock = Lock.model_validate(parse(data, f"{name}:dvc.lock", Lock))
        try:
            params = _git("show", f"{self.commit}:./{FILE}", name=name)
        except UserError:  # it has none
            params = None
        stages = [stage for each, stage in lock.stages.items() if not is_of_the_past(each, params)]
        self.outs = {out.path: out.md5 for stage in stages for out in stage.outs if out.md5}

    def folder(self, path: str, places: list[Storage]) -> DvcFolder:
        """A folder that a stage made, as one of the places has it. Raises UserError if no stage of dvc.lock made it."""
        md5 = self.outs.get(path, "")
        if not md5.endswith(".dir"):
            raise UserError(
                f"{self.name}: its dvc.lock has no folder {path}; run `dvc repro` there, and commit dvc.lock"
            )
        return DvcFolder(places, md5.removesuffix(".dir"))


def _git(*arguments: str, name: str, absent: str = "") -> bytes:
    """What git prints. absent: the message if it fails; without one, that the revision is not known."""
    if name.startswith("-") or not name or "\0" in name:
        raise UserError(f"{name!r}: not a git revision")
    try:
        return git(*arguments)
    except RefusalError as error:
        unknown = f"{name}: not a revision that git knows here; fetch it, or see `git log`"
        raise UserError(absent or (f"{name}: {error}" if error.said else unknown)) from None


def cache_and_remote() -> tuple[Folder, Storage | None]:
    """DVC's cache and its default remote, None if there is none, for the project in the current directory.

    Raises UserError for a directory without .dvc, a remote that is neither a folder nor a bucket, and one at another S3
    server than memoir's requests go to.
    """
    from dvc.config import Config, ConfigError

    root = Path(".dvc").absolute()
    if not root.is_dir():
        raise UserError(f"{root}: not there; run memoir in the project's folder, or `dvc init` first")
    try:
        config = Config(str(root))
    except ConfigError as error:
        raise UserError(f"{root / 'config'}: {' '.join(str(error).split())}") from None
    cache = os.path.normpath(config["cache"].get("dir") or root / "cache")
    name = config["core"].get("remote")
    if not name:
        return Folder(cache, Path(cache)), None
    remote = config["remote"].get(name, {})
    url = remote.get("url")
    if not url or ("://" in url and not url.startswith("s3://")):
        raise UserError(f"{root / 'config'}: remote {name!r} is at {url}; memoir reads a folder or s3://bucket/prefix")
    place = storage(os.fspath(url))
    wanted = remote.get("endpointurl", "").rstrip("/")
    if isinstance(place, Bucket) and wanted and place.endpoint.rstrip("/") != wanted:
        raise UserError(
            f"{url}: DVC's remote {name!r} is at {wanted}, and memoir's requests go to {place.endpoint}; set `endpoint: "
            f"{wanted}` in params.yaml, or AWS_ENDPOINT_URL"
        )
    return Folder(cache, Path(cache)), place


def dataset_of_task(data: str, task: str) -> Storage:
    """Where the dataset of a task is. data: the folder or URI that holds one folder for each task; or dvc://REVISION, which is
    what DVC's remote has of that git revision; or one dataset in a DVC remote, by the URI that the latter has.

    Raises UserError for a revision without that dataset, and without a remote.
    """
    if data.startswith(SCHEME):
        revision = Revision(data.removeprefix(SCHEME))
        _, remote = cache_and_remote()
        if remote is None:
            raise UserError(f"{data}: DVC has no default remote here; `dvc remote add -d NAME URL`")
        return revision.folder(f"data/{task}", [remote])
    whole = dataset_storage(data.rstrip("/"))
    return whole if isinstance(whole, DvcFolder) else storage(f"{data.rstrip('/')}/{task}")
