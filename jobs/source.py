"""The source of a network of one's own, `module:Class`: found, imported, and sent to where it is needed.

A module lies in the current directory or is installed. It takes along its whole top-level package, or the one file of a
plain module.
"""

import atexit
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.errors import UserError, nearest
from pipeline.shards.format import file_sha256

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
OURS = ("jobs", "pipeline")  # a network in these takes only its own file along: the rest is everywhere


def is_own(name: object) -> bool:
    """Whether a recipe's `model.name` is module:Class, and not one of memoir's models."""
    return isinstance(name, str) and NAME.fullmatch(name) is not None


def load(name: str) -> Any:
    """What `module:Class` names. Raises UserError, in one line, if that fails for any reason."""
    module_name, _, attribute = name.partition(":")
    _look_here()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # somebody's file may raise anything
        absent = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
        if absent and f"{module_name}.".startswith(f"{absent}."):
            raise UserError(f"no module {absent}; put its file into {Path.cwd()}, or install it") from None
        raise UserError(f"the import of {module_name} raises {told(error)}") from None
    if not hasattr(module, attribute):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        where = getattr(module, "__file__", None) or module_name
        raise UserError(f"{where} has no {attribute}; {nearest(attribute, classes)}")
    return getattr(module, attribute)


def files(name: str) -> dict[str, Path]:
    """The .py files that `module:Class` takes along, by their path from where the import begins, sorted.

    None of them is imported. Raises UserError if there are none.
    """
    module = name.partition(":")[0]
    top = module.partition(".")[0]
    _look_here()
    spec = importlib.util.find_spec(module if top in OURS else top)
    found: dict[str, Path] = {}
    if spec is not None and top not in OURS and spec.submodule_search_locations is not None:
        for folder in map(Path, spec.submodule_search_locations):
            for path in folder.rglob("*.py"):
                inside = path.relative_to(folder)
                if path.is_file() and not any(part.startswith(".") for part in inside.parts):
                    found.setdefault(f"{top}/{inside.as_posix()}", path)
    elif spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
        path = Path(spec.origin)
        found["/".join([*module.split(".")[:-1], path.name]) if top in OURS else path.name] = path
    if not found:
        raise UserError(f"model {name}: there is no Python source of {top}; give a module that has")
    return dict(sorted(found.items()))


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
    except (UserError, ImportError):  # it is not here at all
        pass
    folder = TemporaryDirectory(prefix="memoir-source-")
    atexit.register(folder.cleanup)
    for path, contents in sent.items():
        file = Path(folder.name, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(contents)
    module = name.partition(":")[0]
    if module.partition(".")[0] in OURS:
        parent = module.rpartition(".")[0]
        importlib.import_module(parent).__path__.append(str(Path(folder.name, *parent.split("."))))
    else:
        sys.path.insert(0, folder.name)
    importlib.invalidate_caches()


def told(error: BaseException) -> str:
    """An exception of somebody's code in one line, with the place that raised it."""
    first = (str(error).strip() or "without a message").splitlines()[0]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    theirs = [frame for frame in frames if not Path(frame.filename).is_relative_to(Path(__file__).parent)]
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    inside = [frame for frame in theirs if "site-packages" not in frame.filename] or theirs
    where = f" ({inside[-1].filename}:{inside[-1].lineno})" if inside else ""
    return f"{type(error).__name__}: {first}{where}"


def _look_here() -> None:
    """Look for modules in the current directory too, after where Python looks."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
