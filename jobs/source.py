"""The source of a network of one's own, `module:Class`: imported, hashed, and sent to where it is needed.

It takes along its whole top-level package, or the one file of a plain module.
"""

import atexit
import hashlib
import importlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline import own_code
from pipeline.errors import UserError
from pipeline.own_code import MEMOIRS
from pipeline.own_code import told as told  # for those who load
from pipeline.shards.format import file_sha256


def is_own(name: object) -> bool:
    """Whether a recipe's `model.name` is module:Class, and not one of memoir's models."""
    return own_code.is_name(name)


def load(name: str) -> Any:
    """What `module:Class` names. Raises UserError, in one line, if that fails for any reason."""
    module_name, _, attribute = name.partition(":")
    with own_code.importing(module_name, Path.cwd()):
        module = importlib.import_module(module_name)
    return own_code.member(module, attribute, getattr(module, "__file__", None) or module_name)


def files(name: str) -> dict[str, Path]:
    """The .py files that `module:Class` takes along, by their path from where the import begins, sorted.

    None of them is imported. Raises UserError if there are none.
    """
    try:
        return own_code.package_files(name.partition(":")[0], Path.cwd())
    except UserError as error:
        raise UserError(f"model {name}: {error}") from None


def present_digest(name: str) -> str:
    """The digest of the files as they are now."""
    return digest({path: file_sha256(file) for path, file in files(name).items()})


def digest(sha256: dict[str, str]) -> str:
    """One digest of the sha256 of several files by their paths."""
    return hashlib.sha256("".join(f"{sha256[path]}  {path}\n" for path in sorted(sha256)).encode()).hexdigest()


def send(name: str) -> dict[str, bytes]:
    """What `receive` takes in another process, which may be on another machine."""
    return {path: file.read_bytes() for path, file in files(name).items()} if is_own(name) else {}


def receive(name: str, sent: dict[str, bytes]) -> None:
    """Have this process import the source that was sent, wherever it is here, and whatever else is here in its place."""
    if not sent:
        return
    try:
        if send(name) == sent:
            return
    except UserError:  # it is not here at all
        pass
    folder = TemporaryDirectory(prefix="memoir-source-")
    atexit.register(folder.cleanup)
    for path, contents in sent.items():
        file = Path(folder.name, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(contents)
    module = name.partition(":")[0]
    if module.partition(".")[0] in MEMOIRS:
        parent = module.rpartition(".")[0]
        importlib.import_module(parent).__path__.append(str(Path(folder.name, *parent.split("."))))
    else:
        own_code.prefer(Path(folder.name))
    importlib.invalidate_caches()
