"""Fuzz one reader with atheris, guided by coverage: `python tests/fuzz/run.py READER [options of libFuzzer]`.

The readers are those of readers.py; what is found goes into the folder of -artifact_prefix. An hour of one:

    python tests/fuzz/run.py dataset -max_total_time=3600 /tmp/corpus tests/fuzz/corpus/dataset
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(include=["pipeline", "jobs", "yaml", "json"]):
    from fuzz.readers import reader

if __name__ == "__main__":
    name, *options = sys.argv[1:]
    arguments = [str(Path(o).resolve()) if not o.startswith("-") else o for o in options]
    read = reader(name)
    atheris.Setup([sys.argv[0], *arguments], read)
    atheris.Fuzz()
