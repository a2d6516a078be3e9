"""A step that stands still is ended, with the stacks of all threads."""

import faulthandler
import tempfile
import threading
import time
from collections.abc import Callable


class Watchdog:
    """A thread that ends a process which stands still: `with Watchdog(...) as watchdog: ... watchdog.beat()`."""

    def __init__(self, seconds: float, hung: Callable[[str], None]) -> None:
        """hung: called with the stacks of all threads when there was no beat for so many seconds."""
        self.seconds, self.hung = seconds, hung
        self.last = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Still alive."""
        self.last = time.monotonic()

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(self.seconds / 4, 5)):
            if time.monotonic() - self.last > self.seconds:
                with tempfile.TemporaryFile("w+") as file:
                    faulthandler.dump_traceback(file)
                    file.seek(0)
                    self.hung(file.read())
                return
