"""The one exception that reaches a user as a line of text instead of a traceback."""

import difflib
import errno

# The user can mend a full disk, a missing permission, or a file where a folder was named. Any other OSError is a defect
# and keeps its traceback.
MENDABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENOTDIR)


class UserError(ValueError):
    """A mistake that the user can mend. Its text is one line: what, where, how to mend it.

    Names and keys in it that come from elsewhere cannot add lines or steer the terminal.
    """

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


def printable(text: str) -> str:
    """Text with its control characters, line breaks and halves of characters written out, as Python's repr does."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def some(names: list[str], shown: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def nearest(word: str, known: list[str]) -> str:
    """`known` as the tail of an error message, the closest to `word` first."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + "known: " + ", ".join(sorted(known))
