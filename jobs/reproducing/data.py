"""The data of a training: the built data set by its digest, and the images that the scores are measured on."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.reproducing.place import Place
from jobs.sharing.remote import Remote, remote
from jobs.sharing.repo import contents, in_history, revisions
from pipeline.console import tell
from pipeline.dvc_objects import DvcFolder
from pipeline.errors import UserError
from pipeline.git import git
from pipeline.revisions.lock import Lock, Tracked, parse
from pipeline.shards.format import dataset_digest, read_shards_json, verify
from pipeline.storage import DeniedError, UnavailableError


def bring_data(place: Place, commit: str, task: str, wanted: str) -> str:
    """Have the built data set of a task in the clone's data/<task>; returns its digest, which is not `wanted` if nobody kept that.

    One that is there stays. Otherwise it is what DVC's remote has of the commit, or of another commit whose dvc.lock has this
    data set: a training begins before what was built for it is committed. If the remote has none of this digest, it is built
    from the raw images of the commit. Raises UserError without a remote, and for data that are damaged or not there.
    """
    out = place.clone / "data" / task
    if not (out / "shards.json").is_file():
        held = _remote(place, commit, task, wanted)
        problems: list[str] = []
        if not any(_fetch(folder, wanted, out, problems) for folder in _kept(place, held, task)):
            for problem in problems:
                tell(f"not taken: {problem}")
            tell(
                f"{held.store.uri}: has no built data set of the digest {wanted[:16]}; it is built from the raw images"
            )
            _build(place, task)
    return dataset_digest(read_shards_json(out)["shards"])


def bring_tests(place: Place, recipe: dict[str, Any]) -> list[str]:
    """Have the images of a recipe's benchmarks in the clone, as far as DVC keeps them; returns the folders that are not there."""
    folders = sorted({str(run["data"]) for run in recipe["evaluation"]["benchmarks"]})
    outs = _tracked(place.clone)
    try:
        remote(place.clone)
    except UserError as error:
        tell(f"the test images are those that are there already, if any: {error}")
        outs = []
    for folder in folders:
        inside = [out for out in outs if Path(folder).is_relative_to(out) or Path(out).is_relative_to(folder)]
        _pull(place, [folder] if any(Path(folder).is_relative_to(out) for out in inside) else inside)
    return [folder for folder in folders if not (place.clone / folder).exists()]


def _remote(place: Place, commit: str, task: str, wanted: str) -> Remote:
    try:
        return remote(place.clone)
    except UserError as error:
        raise UserError(
            f"the data of {commit[:12]} cannot be brought: {error}; or put the built data set of the digest "
            f"{wanted[:16]} into {place.clone}/data/{task}, and try again"
        ) from None


def _kept(place: Place, held: Remote, task: str) -> Iterator[DvcFolder]:
    """The data sets of a task that dvc.lock names, that of the clone's commit first."""
    seen: set[str] = set()
    blobs = [each.id for each in in_history(place.clone, revisions(place.clone, experiments=False), ("dvc.lock",))]
    lock = place.clone / "dvc.lock"
    for data in (*([lock.read_bytes()] if lock.is_file() else []), *(contents(place.clone, blob) for blob in blobs)):
        if f"data/{task}".encode() not in data:
            continue
        stages = Lock.model_validate(parse(data, f"{place.clone}: a dvc.lock", Lock)).stages.values()
        for md5 in {out.md5 for stage in stages for out in stage.outs if out.path == f"data/{task}" and out.md5} - seen:
            seen.add(md5)
            yield DvcFolder([held.store], md5.removesuffix(".dir"))


def _fetch(folder: DvcFolder, digest: str, out: Path, problems: list[str]) -> bool:
    """Copy a data set out of the remote, if it is the one of this digest and all of it is there. problems: gets why not."""
    try:
        listing = read_shards_json(folder)
        if listing["digest"] != digest or listing["shards_in"]:
            return False
        half = out.with_name(f".{out.name}-{folder.md5}")
        for name in folder.names():
            if not (half / name).exists():  # a file appears whole
                (half / name).parent.mkdir(parents=True, exist_ok=True)
                folder.download(name, half / name)
    except (UnavailableError, DeniedError):
        raise
    except UserError as error:
        problems.append(str(error))
        return False
    if problem := next(verify(half), None):
        shutil.rmtree(half)
        problems.append(problem)
        return False
    half.rename(out)
    return True


def _build(place: Place, task: str) -> None:
    _pull(place, _tracked(place.clone, locked=False))
    place.run("memoir", "ingest")
    # params.yaml may name a store of shards that the team shares, into which a build also writes
    place.run("memoir", "build", f"--store={place.root / 'shards'}", "--", task)


def _pull(place: Place, targets: list[str]) -> None:
    if targets:
        place.run("dvc", "pull", "--quiet", "--", *targets)


def _tracked(clone: Path, *, locked: bool = True) -> list[str]:
    """The paths that DVC keeps at the clone's commit. locked: also those that stages made."""
    names = git("ls-files", "-z", "--", "*.dvc", place=clone).decode(errors="surrogateescape").split("\0")
    found = []
    for name in filter(None, names):
        held = Tracked.model_validate(parse((clone / name).read_bytes(), f"{clone / name}", Tracked))
        found.append((Path(name).parent / held.outs[0].path).as_posix())
    if locked and (clone / "dvc.lock").is_file():
        lock = Lock.model_validate(parse((clone / "dvc.lock").read_bytes(), f"{clone}/dvc.lock", Lock))
        found += [out.path for stage in lock.stages.values() for out in stage.outs]
    return found
