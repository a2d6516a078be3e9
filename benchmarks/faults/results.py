"""What a run was: its attempts, what they left, and one word for it."""

from typing import Any, NamedTuple

BAD = ("weights", "loss", "hang", "traceback", "crash")


class Attempt(NamedTuple):
    """One command. code: its exit code, None: it did not end in its time. killed: whether the fault did it."""

    code: int | None
    output: str
    killed: bool
    seconds: float

    @property
    def line(self) -> str:
        """The line that tells the user what to mend; "" where there is none."""
        told = [line for line in self.output.splitlines() if line.startswith("memoir: ")]
        return told[-1] if told else ""

    @property
    def last(self) -> str:
        """That line, or else the last one."""
        return self.line or (self.output.strip().splitlines() or [""])[-1]


class Result(NamedTuple):
    """What a finished run has left: its name, sha256 of the weights in the store, and of the curve, which has no timings."""

    run: str
    weights: str
    curve: str


def outcome(attempts: list[Attempt], result: Result | None, undisturbed: Result) -> str:
    """One word for a run; __main__.py lists them. result: None if no attempt has finished."""
    for attempt in attempts:
        if attempt.code is None:
            return "hang"
        if "Traceback (most recent call last)" in attempt.output:
            return "traceback"
        if attempt.code and not attempt.killed and not attempt.line:
            return "crash"
    if result is None:
        return "error"
    if result.weights != undisturbed.weights:
        return "weights"
    if result.curve != undisturbed.curve:
        return "loss"
    return "recovered" if len(attempts) == 1 else "again"


def is_bad(row: dict[str, Any]) -> bool:
    """Whether a series with this run has failed."""
    return row["outcome"] in BAD or bool(row["orphans"])
