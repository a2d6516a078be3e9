"""The table of a series: a line for each fault."""

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.faults.faults import FAULTS
from benchmarks.faults.results import BAD


def summary(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The cells of a fault's line in the table. rows: those of this fault, at least one."""
    outcomes = [row["outcome"] for row in rows]
    finished = [row for row in rows if row["equal"] is not None]
    bad = {name: outcomes.count(name) for name in BAD if name in outcomes}

    def mean_max(key: str) -> str:
        values = [row[key] for row in finished]
        return f"{sum(values) / len(values):.1f} ({max(values):.1f})" if values else "-"

    return {
        "n": str(len(rows)),
        **{name: str(outcomes.count(name)) for name in ("recovered", "again", "error")},
        "equal": f"{sum(row['equal'] for row in finished)} of {len(finished)}",
        "steps lost": mean_max("steps_lost"),
        "s lost": mean_max("seconds_lost"),
        "orphans": str(sum(len(row["orphans"]) for row in rows)),
        "bad": ", ".join(f"{name} {n}" for name, n in bad.items()) or "-",
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(caption="equal: weights; lost: mean (max)")
    lines = {fault: summary(each) for fault in FAULTS if (each := [row for row in rows if row["fault"] == fault])}
    table.add_column("fault")
    for column in next(iter(lines.values())):
        table.add_column(column, justify="right")
    for fault, cells in lines.items():
        table.add_row(fault, *cells.values())
    Console(width=None if sys.stdout.isatty() else 120).print(table)
