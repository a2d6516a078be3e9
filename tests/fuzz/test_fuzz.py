"""What a fuzzer found worth keeping is tried in each test run; the fuzzer itself is tests/fuzz/run.py."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fuzz.readers import READERS

CORPUS = Path(__file__).parent / "corpus"
SLOWEST = 20  # seconds that one file may take


@pytest.fixture
def read(request, tmp_path, monkeypatch) -> Iterator[Callable[[bytes], None]]:
    """The reader of this name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "place").mkdir()
    yield READERS[request.param](tmp_path / "place")
    monkeypatch.chdir(tmp_path)


def seeds(name: str) -> list[bytes]:
    """The corpus of a reader."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


@pytest.mark.parametrize(("name", "read"), [(name, name) for name in READERS], indirect=["read"])
def test_what_a_fuzzer_found_is_read_or_refused_in_one_line(name, read):
    assert seeds(name)
    for path in sorted((CORPUS / name).iterdir()):
        began = time.process_time()
        try:
            read(path.read_bytes())
        except Exception as error:
            error.add_note(f"reading {path}")
            raise
        assert time.process_time() - began < SLOWEST, path
