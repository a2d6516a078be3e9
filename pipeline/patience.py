"""Waiting between one try and the next."""

from collections.abc import Iterator


class Pauses(Iterator[float]):
    """Seconds to wait before each next try: `first`, then twice as long each time, up to `longest`."""

    def __init__(self, first: float, longest: float) -> None:
        self.first, self.longest = first, longest
        self._pause = min(first, longest)

    def __next__(self) -> float:
        pause, self._pause = self._pause, min(2 * self._pause, self.longest)
        return pause

    def begin_again(self) -> None:
        """Start again with the first pause, after a try that made progress."""
        self._pause = min(self.first, self.longest)
