"""What the tests of hostile files share: nasty values, and a sandbox that sees who leaves it."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from pipeline.errors import UserError

EXAMPLES = settings(
    max_examples=30, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
EVENTS = ("open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.utime")
_watched: list[str] = []  # names of folders that nobody may touch
_touched: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event in EVENTS:
        named = [str(argument) for argument in arguments[:2] if isinstance(argument, str | bytes | Path)]
        _touched.extend(f"{event} {name}" for name in named if any(folder in name for folder in _watched))


sys.addaudithook(_watch)


@contextmanager
def canary(place: Path) -> Iterator[Path]:
    """A folder beside the one that hostile files are read in, with files in it. Nothing may be read, written or removed there."""
    folder = place / "canary"
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    for name in ("file", "model.safetensors", "deep/file"):
        (folder / name).write_bytes(b"mine")
    before = _state(folder)
    _touched.clear()
    _watched.append(str(folder))
    try:
        yield folder
    finally:
        _watched.clear()
    assert not _touched
    assert _state(folder) == before


def _state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def one_line(action: Callable[[], Any]) -> str | None:
    """What is said of hostile files, in one line; None where they are as good as others. Anything else is raised."""
    try:
        action()
    except UserError as error:
        text = str(error)
        assert text.isprintable()
        assert len(text) < 5000
        return text
    return None


def nasty(folder: Path) -> st.SearchStrategy[Any]:
    """Values that a field may be given. folder: that of the canary, to which some of them lead."""
    paths = [
        prefix + end
        for prefix in (f"{folder}/", f"file://{folder}/", "../../canary/", "../../../canary/", "canary/", "/proc/self/")
        for end in ("file", "deep", "")
    ]
    texts = [
        "",
        ".",
        "..",
        "/",
        "a/b",
        "a\x00b",
        "a\nb",
        "\x1b[31mred",
        "x" * 3000,
        "é",
        "0" * 64,
        "f" * 64,
        "-",
        "1",
        "s3://other/b",
    ]
    numbers = [-1, 0, 1, 2, 2**31 - 1, 2**31, 2**40, 2**63 - 1, 2**63, 2**200, -(2**63), 0.5, 1e300]
    others: list[Any] = [None, True, False, [], {}, [[]], [1, 2, 3], {"a": 1}]
    return st.sampled_from([*paths, *texts, *numbers, *others]) | st.integers() | st.text(max_size=8)


def mutated(draw: st.DataObject, value: Any, values: st.SearchStrategy[Any]) -> Any:
    """A JSON value of which one part, at any depth, is another, is gone, or has company."""
    value = json.loads(json.dumps(value))
    places = list(_places(value))
    container, key = draw.draw(st.sampled_from(places))
    what = draw.draw(st.sampled_from(["set", "set", "set", "drop", "add"]))
    if what == "set":
        container[key] = draw.draw(values)
    elif what == "drop":
        del container[key]
    elif isinstance(container, dict):
        container[draw.draw(st.text(max_size=5))] = draw.draw(values)
    else:
        container.append(draw.draw(values))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield value, key
        yield from _places(below)
