"""Fuzz one reader with atheris, guided by coverage: `python tests/fuzz/run.py READER [options and folders of libFuzzer]`.

The readers are those of readers.py; atheris (of PyPI, for Linux on x86-64) is installed by hand. An hour of one, in which new
files go to the first folder, and what it finds to the folder here:

    python tests/fuzz/run.py dataset -max_total_time=3600 -timeout=30 -rss_limit_mb=4000 new tests/fuzz/corpus/dataset

Those of them that cover what the corpus does not come into it by

    python tests/fuzz/run.py dataset -merge=1 tests/fuzz/corpus/dataset new

MEMOIR_MEGAPIXELS=4 makes the fuzzing of `picture` several times as fast, as few pictures are large then.
"""

import sys
from pathlib import Path

import atheris  # type: ignore[import-not-found]

sys.path[:0] = [str(Path(__file__).parents[up]) for up in (1, 2)]
with atheris.instrument_imports(include=["pipeline", "jobs", "yaml", "json", "PIL"]):
    from fuzz.readers import reader

if __name__ == "__main__":
    name, *options = sys.argv[1:]
    arguments = [option if option.startswith("-") else str(Path(option).resolve()) for option in options]
    again = f"{sys.executable} {Path(__file__).resolve()} {name}"  # what libFuzzer starts for -merge=1 and the like
    read = reader(name)  # which works in a folder of its own
    atheris.Setup([again, *arguments], read)
    atheris.Fuzz()
