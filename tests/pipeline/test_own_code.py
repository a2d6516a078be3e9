"""Code of the user's own: one order in which networks and degradations look for it."""

import importlib
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import source
from pipeline import own_code
from pipeline.degradations.own import Own
from pipeline.errors import UserError

CLASS = """
class Made:
    where = {where!r}
    levels = (1,)

    def degrade(self, image, level, rng):
        return image
"""


def network(module: str) -> str:
    return source.load(f"{module}:Made").where


def degradation(module: str) -> str:
    return Own(kind=f"{module}:Made").found(Path.cwd())._instance.where


ROOMS = pytest.mark.parametrize("load", [network, degradation])
Load = Callable[[str], str]


@pytest.fixture
def name(tmp_path, monkeypatch) -> Iterator[str]:
    """A name that no module has; what is imported of it is forgotten. The current directory is tmp_path/here."""
    (tmp_path / "here").mkdir()
    (tmp_path / "installed").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    monkeypatch.setattr(own_code, "_SENT", [])
    name = f"code_{uuid.uuid4().hex}"
    yield name
    for known in [known for known in sys.modules if known.startswith(name)]:
        del sys.modules[known]


def write(where: str, path: str, text: str = CLASS) -> None:
    file = Path("..", where, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.replace("{where!r}", repr(where)))


def complaint(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@ROOMS
@pytest.mark.parametrize("path", ["{}.py", "{}/__init__.py"])
def test_the_current_directory_comes_first_and_what_is_installed_after_it(name, load, path):
    write("installed", path.format(name))
    write("here", "other.py")
    assert load(name) == "installed"
    sys.modules.pop(name, None)
    write("here", f"{name}.py")
    assert load(name) == "here"


@ROOMS
@pytest.mark.parametrize("installed", ["{}/__init__.py", "{}/fog.py"])
def test_a_folder_without_an_init_is_a_package_where_it_has_the_module_and_none_where_it_has_data(
    name, load, installed, monkeypatch
):
    write("installed", installed.format(name))
    write("installed", f"{name}/fog.py")
    write("here", f"{name}/image.txt")
    assert load(f"{name}.fog") == "installed"
    for known in (name, f"{name}.fog"):
        sys.modules.pop(known, None)
    write("here", f"{name}/fog.py", f"from .sides import Made\nfrom {name} import sides as again\n")
    write("here", f"{name}/sides.py")
    write("installed", f"{name}/sides.py")
    assert load(f"{name}.fog") == "here"
    write("installed", f"{name}/late.py")
    monkeypatch.syspath_prepend(Path("..", "more").absolute())  # Python looks again for the parts of such a package
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{name}.late")
    assert [*map(str, source.files(f"{name}.fog:Made"))] == [f"{name}/fog.py", f"{name}/sides.py"]


@ROOMS
def test_what_it_imports_is_looked_for_in_the_same_order(name, load):
    write(
        "here",
        f"{name}.py",
        f"import secrets\nfrom {name}_near import Made\nfrom {name}_far import Made as _\nMade.secrets = secrets.token_hex\n",
    )
    write("here", f"{name}_near.py")
    write("installed", f"{name}_near.py")
    write("installed", f"{name}_far.py")
    write("here", f"{name}_far/image.txt")  # a folder of data
    write("here", "secrets.py", "")  # which the standard library has
    before = sys.modules.pop("secrets")
    try:
        assert load(name) == "here"
    finally:
        sys.modules["secrets"] = before
    assert not any(isinstance(finder, own_code._Finder) for finder in sys.meta_path)


@ROOMS
def test_an_import_within_a_function_finds_the_current_directory_too_but_last(name, load):
    write("here", f"{name}.py")
    load(name)
    write("here", f"{name}_late.py")
    importlib.invalidate_caches()
    assert importlib.import_module(f"{name}_late").Made.where == "here"
    write("here", f"{name}_both.py")
    write("installed", f"{name}_both.py")
    importlib.invalidate_caches()
    assert importlib.import_module(f"{name}_both").Made.where == "installed"


@ROOMS
@pytest.mark.parametrize(
    ("module", "whose"),
    [("types", "Python's"), ("pipeline.fog", "memoir's"), ("jobs", "memoir's"), ("memoir", "memoir's")],
)
def test_no_file_has_a_name_of_pythons_or_memoirs(name, load, module, whose):
    path = f"{module.replace('.', '/')}.py"
    write("here", path)
    before = {key: each for key, each in sys.modules.items() if key.partition(".")[0] == module.partition(".")[0]}
    said = complaint(lambda: load(module))
    top = module.partition(".")[0]
    assert said == (f"{Path.cwd() / path}: {top} is {whose} own name, and never a file of yours; give it another one")
    assert all(sys.modules[key] is each for key, each in before.items())


@ROOMS
def test_modules_of_memoirs_own_are_had_where_memoir_lies(name, load, monkeypatch):
    (Path.cwd() / "pipeline").mkdir()  # a folder of data
    assert "has no class Made" in complaint(lambda: load("pipeline.depth"))
    monkeypatch.chdir(Path(source.__file__).parents[1])
    assert "has no class Made" in complaint(lambda: load("pipeline.depth"))


@ROOMS
def test_another_module_of_the_name_that_is_loaded_already_is_told(name, load):
    write("installed", f"{name}.py")
    importlib.import_module(name)
    write("here", f"{name}.py")
    said = complaint(lambda: load(name))
    assert said == f"{Path.cwd() / name}.py: another module {name} is loaded already; give yours another name"


@ROOMS
def test_what_is_nowhere_or_does_not_load_is_told_alike(name, load):
    here = Path.cwd()
    assert complaint(lambda: load(f"{name}.a")).endswith(
        f"no module {name}.a; put {name}/a.py into {here}, or install it"
    )
    write("here", f"{name}/__init__.py", "")
    assert complaint(lambda: load(f"{name}.a")).endswith(
        f"no module {name}.a; put {name}/a.py into {here}, or install it"
    )
    write("here", f"{name}.py", "")
    for text, said in {
        "1 / 0": "ZeroDivisionError: division by zero",
        "import nowhere_at_all": "ModuleNotFoundError: No module named 'nowhere_at_all'",
        "raise SystemExit(3)": "SystemExit: 3",
        "def (": "SyntaxError: invalid syntax",
        "__import__('json').loads('')": "JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
        "__import__('numpy').load('nowhere')": "FileNotFoundError: [Errno 2] No such file or directory: 'nowhere'",
    }.items():
        write("here", f"{name}/b.py", f"\n{text}\n")
        found = complaint(lambda: load(f"{name}.b"))
        assert found == f"the import of {name}.b raises {said} ({here / name / 'b.py'}:2)"
    write("here", f"{name}/c.py", "class Mode: pass")
    assert complaint(lambda: load(f"{name}.c")).endswith("c.py: has no class Made; did you mean 'Mode'? known: Mode")


def test_nothing_is_imported_to_know_where_a_source_lies(name):
    write("installed", f"{name}/__init__.py", "raise SystemExit('imported')")
    write("installed", f"{name}/deep/a.py", "raise SystemExit('imported')")
    path = own_code.source_file(f"{name}.deep.a", Path.cwd())
    assert path.samefile(Path("..", "installed", name, "deep/a.py"))
    assert list(own_code.package_files(f"{name}.deep.a", Path.cwd())) == [f"{name}/__init__.py", f"{name}/deep/a.py"]
    assert "no Python source of math" in complaint(lambda: own_code.source_file("math", Path.cwd()))


def test_a_name_is_ascii_letters_and_a_class():
    assert all(map(own_code.is_name, ("a:B", "a.b_1:_C")))
    assert not any(map(own_code.is_name, ("a", "a:", ":B", "a.:B", "a/b:C", "a:B\n", "ä:B", "a:B.c", "1a:B", None)))


def test_memoir_itself_starts_where_files_have_names_of_what_it_imports_later(name, tmp_path):
    """The current directory is never before the installed ones but while code of the user's is imported."""
    for each in ("numpy", "yaml", "torch", "secrets"):
        write("here", f"{each}.py", "raise SystemExit('shadowed')")
    write("here", f"{name}.py")
    program = (
        "import sys; sys.path.remove(''); from pathlib import Path; from pipeline.degradations.own import Own;"
        f"Own(kind='{name}:Made').found(Path.cwd()); import secrets, yaml, torch; print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("ok\n", "")
