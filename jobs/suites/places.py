"""Where a suite finds things and what it may do: the options that all suites share."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple


class Places(NamedTuple):
    """datasets: the test sets. data: built tasks. runs, store, trust: as `memoir evaluate` takes them. timed: take times, too."""

    datasets: Path = Path("datasets")
    data: Path = Path("data")
    runs: Path = Path("runs")
    store: str | None = None
    trust: Collection[str] = ()
    timed: bool = False
