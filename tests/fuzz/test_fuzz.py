"""What a fuzzer found worth keeping is tried in each test run, and by chance what is like it; the fuzzer is tests/fuzz/run.py.

To try again what chance tried: FUZZ_SEED, the environment's name of the number that a failure tells.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fuzz.readers import READERS

CORPUS = Path(__file__).parent / "corpus"
SLOWEST = 20  # seconds of CPU time that one file may take
CHANCE = 15  # seconds that chance gets for each reader


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
        try_one(read, path.read_bytes(), f"reading {path}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "read"), [(name, name) for name in READERS], indirect=["read"])
def test_what_chance_makes_of_it_is_read_or_refused_in_one_line(name, read, tmp_path):
    seed = int(os.environ.get("FUZZ_SEED", time.time_ns()))
    chance = random.Random(seed)
    corpus = seeds(name)
    path = tmp_path / "input"  # is written first, and stays if a decoder ends the process
    end = time.monotonic() + CHANCE
    tried = 0
    while time.monotonic() < end:
        data = mutated(chance, corpus)
        path.write_bytes(data)
        try_one(read, data, f"reading {path}, try {tried} of FUZZ_SEED={seed}")
        tried += 1
    print(f"{name}: {tried} tries of FUZZ_SEED={seed}")


def try_one(read: Callable[[bytes], None], data: bytes, what: str) -> None:
    """Read; an exception gets `what` for a note, and so does taking longer than SLOWEST."""
    began = time.process_time()
    try:
        read(data)
        assert (took := time.process_time() - began) < SLOWEST, f"{took:.1f} s"
    except BaseException as error:
        error.add_note(what)
        raise


def mutated(chance: random.Random, corpus: list[bytes]) -> bytes:
    """One of the corpus with one to eight changes."""
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at, length = chance.randrange(len(data) + 1), chance.choice((1, 2, 4, 16, 64, 256))
        run = data[at : at + length]
        match chance.randrange(6):
            case 0:
                data[at : at + 1] = bytes(byte ^ 1 << chance.randrange(8) for byte in run[:1])
            case 1:
                data[at:at] = chance.randbytes(length)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = run * chance.choice((1, 1, 2, 64))
            case 4:
                size = chance.choice((1, 2, 4, 8))
                half = 1 << 8 * size - 1
                number = chance.choice((0, 1, half - 1, half, 2 * half - 1))
                data[at : at + size] = number.to_bytes(size, chance.choice(("little", "big")))
            case 5:
                other = chance.choice(corpus)
                data[at:] = other[chance.randrange(len(other) + 1) if chance.randrange(2) else at :]
    return bytes(data)
