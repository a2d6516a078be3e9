"""What the ranks of a run tell while they train, and the progress bar that shows it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Feed:
    """An actor between the workers and the process that shows what they say."""

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}
        self.notes: list[str] = []
        self.error: str | None = None
        self.defect: str | None = None
        self.met: set[tuple[int, int, str]] = set()

    def put(self, record: dict[str, Any]) -> None:
        """Merge a record of rank 0 into what is shown."""
        self.last |= record

    def note(self, line: str) -> None:
        """Have a line told once."""
        self.notes.append(line)

    def get(self, told: int) -> tuple[dict[str, Any], list[str]]:
        """The latest values, and the notes after the first `told`."""
        return self.last, self.notes[told:]

    def fail(self, error: str) -> None:
        """A mistake of the user's that one rank has met: the others learn of it when they start again."""
        self.error = error

    def defects(self, rank: int, step: int, error: str, trace: str) -> None:
        """A defect that a rank has met at a step: if it has met it there before, no start will get beyond it."""
        if (rank, step, error) in self.met:
            self.defect = f"rank {rank} met it again at step {step}, so there is no use in another start:\n{trace}"
        self.met.add((rank, step, error))

    def fatal(self) -> dict[str, str]:
        """What ended the run: {"error": a mistake of the user's} or {"defect": one of ours}; or nothing."""
        ends = {"error": self.error, "defect": self.defect}
        return {name: text for name, text in ends.items() if text}


@contextmanager
def shown(run: str, feed: Any) -> Iterator[None]:
    """Show what a run's feed, an actor, is told."""
    stop = threading.Event()
    bar = threading.Thread(target=_show, args=(run, feed, stop), daemon=True)
    bar.start()
    try:
        yield
    finally:
        stop.set()
        bar.join()


def _show(run: str, feed: Any, stop: threading.Event) -> None:
    """A progress bar of the latest values until `stop` is set; plain lines where there is no terminal."""
    text = "{task.fields[shown]}"
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn(text)
    ) as bar:
        task = bar.add_task(run, total=None, shown="starting workers")
        printed, told = 0, 0
        over = False
        while not over:
            over = stop.wait(0.5)
            try:
                values, notes = ray.get(feed.get.remote(told), timeout=5)
            except Exception:  # the bar must never end a run
                continue
            told += len(notes)
            for note in notes:
                bar.console.print(f"{run}: {note}", soft_wrap=True, markup=False, highlight=False)
            if values.get("step", 0) < printed:  # a restart
                printed = 0
            if values.get("step", 0) > printed:
                printed = values["step"]
                bar.update(task, completed=printed, total=values["total"], shown=_line(values))
                if not bar.console.is_terminal:
                    bar.console.print(f"{run} {printed}/{values['total']} {_line(values)}", soft_wrap=True)


def _line(values: dict[str, Any]) -> str:
    forms = {
        "loss": "loss {:.4g}",
        "psnr": "psnr {:.2f} dB",
        "val_psnr": "val {:.2f} dB",
        "images_per_s": "{:.0f} images/s",
        "wait_s": "waited {:.1f} s for data",
        "network_s": "{:.1f} s for the network",
    }
    words = [form.format(values[key]) for key, form in forms.items() if key in values]
    if values.get("left_s", 0) > 0:
        minutes = round(values["left_s"] / 60)
        words.append(
            f"{minutes // 60} h {minutes % 60} min left" if minutes >= 60 else f"{minutes or 'less than 1'} min left"
        )
    return "  ".join(words)
