"""Code of the user's own, named `module:Class`: where it is looked for, how it is imported, what is said if that fails.

A module is looked for in the current directory, then among what is installed, and so is what it imports while it is
imported. The names of the standard library and of memoir's packages are theirs wherever a file of that name lies.
"""

import importlib
import importlib.util
import re
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import UserError, nearest

NAME = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"  # mypackage.fog:Fog
MEMOIRS = ("jobs", "memoir", "pipeline")
_SENT: list[Path] = []  # folders of source that was sent to this process, the newest first
_LOADING = threading.RLock()


def is_name(text: object) -> bool:
    """Whether this is the name of a class of the user's own, `module:Class`. Nothing is looked for."""
    return isinstance(text, str) and re.fullmatch(NAME[1:-1], text) is not None


def prefer(folder: Path) -> None:
    """Look for modules in this folder before the current directory, for the life of this process."""
    _SENT.insert(0, folder)


def source_file(module: str, here: Path) -> Path:
    """The source of a module. here: the current directory of whoever named it. Nothing of the user's is imported.

    Raises UserError if there is none, and for a file in `here` that has a name of Python's or memoir's.
    """
    top, _, below = module.partition(".")
    home = _home(module, here)
    if home is not None:
        path = _file(module, home)
    elif top in MEMOIRS or not below:
        spec = _installed(module)
        if spec is not None and not (spec.origin or "").endswith(".py"):
            raise UserError(f"there is no Python source of {module}; give a module that has")
        path = None if spec is None else Path(spec.origin or "")
    else:  # Python would import the packages above it to find it
        spec = _installed(top)
        folders = [] if spec is None else spec.submodule_search_locations or []
        path = next((path for folder in folders if (path := _file(below, Path(folder))) is not None), None)
    if path is None:
        raise UserError(_absent(module, here))
    return path


def package_files(module: str, here: Path) -> dict[str, Path]:
    """The .py files of a module's top-level package, or the one of a plain module, by their path from where its import
    begins, sorted; of a module in memoir's packages its own file only, for the rest is everywhere.

    None of them is imported. Raises UserError as `source_file`.
    """
    top = module.partition(".")[0]
    path = source_file(module, here)
    if top in MEMOIRS:
        return {"/".join([*module.split(".")[:-1], path.name]): path}
    home = _home(module, here)
    spec = _installed(top) if home is None else _found(top, home)
    found: dict[str, Path] = {}
    for folder in map(Path, (spec and spec.submodule_search_locations) or ()):
        for file in folder.rglob("*.py"):
            inside = file.relative_to(folder)
            if file.is_file() and not any(part.startswith(".") for part in inside.parts):
                found.setdefault(f"{top}/{inside.as_posix()}", file)
    return dict(sorted(found.items())) or {path.name: path}


@contextmanager
def importing(module: str, here: Path) -> Iterator[None]:
    """For the statements that import a module: what they look for is where this file says.

    Raises UserError, in one line, for whatever they raise, and where another module of that name is loaded already.
    Afterwards `here` is the last place where Python looks, for imports within the user's functions.
    """
    home, top = _home(module, here), module.partition(".")[0]
    finder = _Finder(top, home, here)
    with _LOADING:
        loaded = sys.modules.get(top)
        if home is not None and loaded is not None and not _is_of(loaded, home):
            raise UserError(
                f"{_file(module, home) or home}: another module {top} is loaded already; give yours another name"
            )
        if str(here) not in sys.path:
            sys.path.append(str(here))
        importlib.invalidate_caches()
        if home is not None:
            sys.meta_path.insert(0, finder)
        try:
            yield
        except (Exception, SystemExit) as error:  # somebody's file may raise anything
            absent = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
            if absent and f"{module}.".startswith(f"{absent}."):
                raise UserError(_absent(module, here)) from None
            raise UserError(f"the import of {module} raises {told(error)}") from None
        finally:
            if home is not None:
                sys.meta_path.remove(finder)


def member(module: ModuleType, name: str, shown: str) -> Any:
    """What has this name in a module. shown: its file, for messages. Raises UserError, with the nearest class."""
    if not hasattr(module, name):
        classes = {key: value for key, value in vars(module).items() if isinstance(value, type)}
        made_there = [key for key, value in classes.items() if value.__module__ == module.__name__]
        known = made_there or list(classes)  # a package may only collect classes of its modules
        raise UserError(f"{shown}: has no class {name}; {nearest(name, known) if known else 'nor any other one'}")
    return getattr(module, name)


def told(error: BaseException) -> str:
    """An exception of somebody's code in one line, with the place that raised it."""
    first = (str(error).strip() or "without a message").splitlines()[0]
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    ours = [Path(__file__).parents[1] / each for each in MEMOIRS]
    theirs = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(each) for each in ours)]
    inside = [frame for frame in theirs if not _is_library(frame.filename)] or theirs
    where = f" ({inside[-1].filename}:{inside[-1].lineno})" if inside else ""
    return f"{type(error).__name__}: {first}{where}"


class _Finder(MetaPathFinder):
    """Finds top-level modules in the user's folders before Python looks elsewhere."""

    def __init__(self, top: str, home: Path | None, here: Path) -> None:
        self.top, self.home, self.here = top, home, here

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None or _is_reserved(fullname):
            return None
        if fullname == self.top and self.home is not None:
            return _found(fullname, self.home)
        for folder in (*_SENT, self.here):
            spec = PathFinder.find_spec(fullname, [str(folder)])
            if spec is not None and spec.loader is not None:  # a folder of data is no package
                return spec
        return None


def _is_library(file: str) -> bool:
    return "site-packages" in file or Path(file).is_relative_to(sysconfig.get_path("stdlib"))


def _is_reserved(top: str) -> bool:
    return top in MEMOIRS or top in sys.stdlib_module_names


def _home(module: str, here: Path) -> Path | None:
    """The folder where a module's import begins: one of sent source, or `here`; None if it is an installed one.

    Raises UserError for a file there with a name of Python's or memoir's.
    """
    top = module.partition(".")[0]
    if _is_reserved(top):
        path = _file(module, here)
        theirs = None if path is None else _installed(module if top in MEMOIRS else top)
        if path is not None and not (theirs and theirs.origin and _same(Path(theirs.origin), path)):
            whose = "memoir's" if top in MEMOIRS else "Python's"
            raise UserError(f"{path}: {top} is {whose} own name, and never a file of yours; give it another one")
        return None
    for folder in (*_SENT, here):
        if _file(module, folder) is not None or _file(top, folder) is not None:
            return folder
    return None


def _file(module: str, folder: Path) -> Path | None:
    base = folder.joinpath(*module.split("."))
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def _found(top: str, home: Path) -> ModuleSpec | None:
    """What Python finds in this folder and in no other one."""
    spec = PathFinder.find_spec(top, [str(home)])
    if spec is not None and spec.loader is None:  # no __init__.py: Python would add the folders of this name elsewhere
        spec = ModuleSpec(top, None, is_package=True)
        spec.submodule_search_locations = [str(home / top)]
    return spec


def _installed(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a package above it is not there; a module that was made by hand
        return None


def _is_of(loaded: ModuleType, home: Path) -> bool:
    places = [getattr(loaded, "__file__", None), *getattr(loaded, "__path__", ())]
    return any(place is not None and Path(place).resolve().is_relative_to(home.resolve()) for place in places)


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def _absent(module: str, here: Path) -> str:
    return f"no module {module}; put {module.replace('.', '/')}.py into {here}, or install it"
