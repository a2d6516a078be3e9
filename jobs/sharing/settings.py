"""The team's settings: the default remote in .dvc/config, and the store, shards and endpoint of params.yaml."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import yaml
from configobj import ConfigObj, ConfigObjError
from pydantic import ValidationError

from jobs.sharing import repo
from jobs.sharing.probe import Rights, rights
from jobs.sharing.remote import SECRETS, check_address, configuration
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.params import FILE, Params, read_params
from pipeline.storage import Bucket, storage

REMOTE = "bucket"
CONFIG = Path(".dvc/config")
ORDER = ("store", "shards", "endpoint")  # of params.yaml


class Shared(NamedTuple):
    """What `share` did. files: those that it changed. rights: by place. had: the store that params.yaml named before, if another."""

    remote: str
    store: str
    files: list[Path]
    rights: dict[str, Rights]
    had: str | None


def share(repository: Path, uri: str, endpoint: str | None) -> Shared:
    """Set a repository up to share its data, shards, experiments and models through one bucket.

    uri: s3://bucket/prefix. endpoint: URL of the S3 server, where it is not Amazon's. DVC's objects go to <uri>/dvc, built shards
    to <uri>/shards, runs and models to <uri>. The settings are written when the bucket has been tried out, both files or none;
    setting up what is set up already changes nothing. Raises UserError for settings of another kind that are there, for
    changes in the two files that are not committed, and for a bucket that a team cannot use.
    """
    uri = uri.rstrip("/")
    check_address(uri, "the bucket's URI")
    if endpoint:
        check_address(endpoint, "the endpoint")
    place = storage(uri)
    if not isinstance(place, Bucket):
        raise UserError(f"{uri}: not a bucket; expected s3://bucket/prefix")
    repo.top(repository)
    params = read_params(repository / FILE)
    wanted = {"store": uri, "shards": f"{uri}/shards", "endpoint": endpoint}
    had = _own_store(params, wanted)
    name, config = _config(repository, f"{uri}/dvc", endpoint)
    texts = {repository / CONFIG: config, repository / FILE: edited(repository / FILE, wanted)}
    files = [path for path, text in texts.items() if text != path.read_bytes()]
    dirty = repo.changed(repository, [str(path.relative_to(repository)) for path in files]) if files else []
    if dirty:
        raise UserError(
            f"{repository}: {' and '.join(dirty)} has changes that are not committed; commit or revert them first"
        )
    found = {each: rights(each, endpoint) for each in (f"{uri}/dvc", f"{uri}/models", f"{uri}/shards")}
    if files and not all(each.write for each in found.values()):
        locked = next(each for each, may in found.items() if not may.write)
        raise UserError(f"{locked}: {found[locked]}; nothing was set up")
    _write_all({path: texts[path] for path in files})
    return Shared(name, uri, files, found, had)


def _own_store(params: Params, wanted: Mapping[str, str | None]) -> str | None:
    """The store that params.yaml names if it is another one on this machine. Raises UserError for a store of somebody else."""
    for key, value in wanted.items():
        present = getattr(params, key)
        shared = key != "store" or "://" in present or Path(present).is_absolute()
        if present not in (None, value) and shared:
            raise UserError(
                f"{FILE}: {key} is {present!r}, not {value!r}; if the team moves, remove that line and try again"
                if key != "store"
                else f"{FILE}: store is {present!r}, not {value!r}; if the team moves, write `store: store` there and try again"
            )
    return params.store if params.store != wanted["store"] else None


def _config(repository: Path, url: str, endpoint: str | None) -> tuple[str, bytes]:
    """The name of the remote, and .dvc/config with it. Raises UserError for another default remote, or keys in the file."""
    settings = configuration(repository)
    name = settings["core"].get("remote") or REMOTE
    section = settings["remote"].get(name, {})
    for other, values in settings["remote"].items():
        if kept := [key for key in SECRETS if values.get(key)]:
            raise UserError(
                f"remote {other}: {kept[0]} is in DVC's configuration; remove it with `dvc remote modify --unset {other} {kept[0]}`"
            )
    wanted = {"url": url, "verify": "true"} | ({"endpointurl": endpoint} if endpoint else {})
    present = {key: str(section[key]) for key in ("url", "endpointurl") if key in section}
    for key in ("url", "endpointurl"):
        if section and present.get(key) != wanted.get(key):
            raise UserError(
                f"{CONFIG}: remote {name!r} has {key} {present.get(key)!r}, not {wanted.get(key)!r}; "
                f"if the team moves, run `dvc remote remove {name}` and try again"
            )
    path = repository / CONFIG
    try:
        file = ConfigObj(io.BytesIO(path.read_bytes()), indent_type="    ")
    except ConfigObjError as error:
        raise UserError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc init` writes it") from None
    before = file.dict()
    file.setdefault("core", {})["remote"] = name
    file.setdefault(f'remote "{name}"', {}).update(wanted)
    if file.dict() == before or (section.get("verify") is True and settings["core"].get("remote") == name):
        return name, path.read_bytes()
    out = io.BytesIO()
    file.write(out)
    return name, out.getvalue()


def edited(path: Path, values: Mapping[str, str | None]) -> bytes:
    """A params.yaml with these keys at its top set, and every other byte as it is. None leaves a key as it is.

    Raises UserError for values that the file cannot have.
    """
    text = path.read_text(encoding="utf-8")
    if all(value is None or (yaml.safe_load(text) or {}).get(key) == value for key, value in values.items()):
        return path.read_bytes()
    text = f"{text.rstrip()}\n"
    for key, value in values.items():
        if value is None:
            continue
        root = yaml.compose(text, yaml.SafeLoader)
        assert root is not None  # it was read as Params
        nodes = {name.value: node for name, node in root.value}
        quoted = yaml.safe_dump(value, width=10**6).removesuffix("...\n").rstrip("\n")
        if key not in nodes:
            before = next(nodes[name] for name in reversed(ORDER[: ORDER.index(key)]) if name in nodes)
            end = text.find("\n", before.end_mark.index)
            text = f"{text[:end]}\n{key}: {quoted}{text[end:]}"
        elif nodes[key].value != value:
            node = nodes[key]
            text = text[: node.start_mark.index] + quoted + text[node.end_mark.index :]
    try:
        Params.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return text.encode()


def _write_all(texts: Mapping[Path, bytes]) -> None:
    """Write files, or leave all of them as they were."""
    before = {path: path.read_bytes() for path in texts}
    written: list[Path] = []
    try:
        for path, text in texts.items():
            write_bytes(path, text)
            written.append(path)
    except BaseException:
        for path in written:
            write_bytes(path, before[path])
        raise
