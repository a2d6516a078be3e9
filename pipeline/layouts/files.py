"""The files of a data set: how they are listed and ordered, what their names say, and which cannot be images."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Formatter

from pipeline.errors import UserError
from pipeline.images import SUFFIXES

# A key starts the name of a tar member; the USTAR header has 100 bytes for the name without folders.
LONGEST_KEY = 80


DIGITS = 20  # the digits of a number in a name that order it, from its end


# Suffixes of files that may lie beside the images of a user's own data set and are no rejects.
SIDE_FILES = frozenset({"", ".csv", ".dvc", ".html", ".json", ".md", ".pdf", ".rst", ".txt", ".yaml", ".yml"})


# Suffixes of images in formats that are not read.
OTHER_SUFFIXES = frozenset(
    f".{name}"
    for name in [
        "gif",
        "apng",
        "heic",
        "heif",
        "hif",
        "avif",
        "jp2",
        "j2k",
        "jpf",
        "jxl",
        "jxr",
        "ico",
        "psd",
        "svg",
        "eps",
        "ppm",
        "pgm",
        "pbm",
        "pnm",
        "exr",
        "hdr",
        "tga",
        "dds",
        "dng",
        "cr2",
        "cr3",
        "nef",
        "nrw",
        "arw",
        "srf",
        "sr2",
        "orf",
        "rw2",
        "raf",
        "pef",
        "srw",
        "x3f",
        "raw",
    ]
)


LEFT_BEHIND = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir"})


@dataclass(frozen=True)
class Rule:
    """How files of one role are named, the last suffix apart: text with {placeholders}, e.g. `{n}_GT_SRGB_{shot}`.

    A placeholder stands for one character or more; the last one takes as much as it can, the others as little.
    """

    pattern: str

    @cached_property
    def placeholders(self) -> tuple[str, ...]:
        """In the order of the pattern."""
        return tuple(name for _, name, _, _ in Formatter().parse(self.pattern) if name is not None)

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        last = self.placeholders[-1]
        parts = [
            re.escape(text) + ("" if name is None else f"(?P<{name}>.+{'' if name == last else '?'})")
            for text, name, _, _ in Formatter().parse(self.pattern)
        ]
        return re.compile("".join(parts), re.DOTALL)

    def parse(self, stem: str) -> dict[str, str] | None:
        """The values of the placeholders in a name; None if it does not follow the rule."""
        match = self._regex.fullmatch(stem)
        return match.groupdict() if match else None


ANY_NAME = Rule("{name}")


def safe_key(name: str) -> str:
    """A key for `name`, a file's name without its last suffix (or such names joined by `-`).

    A name of letters, digits, `_` and `-`, without a leading `-` and of at most 80 characters, is its own key. Another
    one has its other characters replaced by `_`, and 12 hex digits of its BLAKE2b behind a `-`, so that `scene.1` and
    `scene 1` stay apart. A key is never parsed back.
    """
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name) and len(name) <= LONGEST_KEY:
        return name
    name = unicodedata.normalize("NFC", name)  # macOS writes é as two characters, others as one
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=6).hexdigest()
    masked = re.sub(r"^-|[^A-Za-z0-9_-]", "_", name)
    return f"{masked[: LONGEST_KEY - len(digest) - 1]}-{digest}"


def natural(name: str) -> tuple[str, str]:
    """A sort key that puts `frame2` before `frame10`; names that differ only by leading zeros keep a fixed order."""
    return re.sub(r"[0-9]+", lambda digits: digits[0].zfill(DIGITS)[-DIGITS:], name), name


def hidden(name: str) -> bool:
    """Whether a file or folder is passed by: it begins with a dot, or is what Windows, macOS and NAS boxes leave behind."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def listed(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, hidden entries left out, sorted by name. Raises UserError if that cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); mend its permissions") from None


def subfolders(folder: Path) -> list[Path]:
    """The folders directly in `folder`, sorted by name; none if it does not exist."""
    entries = listed(folder) if folder.is_dir() else []
    return [folder / entry.name for entry in entries if (folder / entry.name).is_dir()]


def files_under(folder: Path) -> Iterator[Path]:
    """All files below `folder`, sorted by name at each level; nothing if it does not exist.

    Hidden files and folders are left out. Links to folders are followed, but not back into a folder that is open.
    Raises UserError for a folder that cannot be listed.
    """

    def walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
        stat = folder.stat()
        here = (stat.st_dev, stat.st_ino)
        if here in above:
            return
        for entry in listed(folder):
            path = folder / entry.name
            # a link that leads to itself makes entry.is_dir() raise, and path.is_dir() say False
            if path.is_dir() if entry.is_symlink() else entry.is_dir():
                yield from walk(path, above | {here})
            else:
                yield path

    if folder.is_dir():
        yield from walk(folder, frozenset())


def suffix_fault(path: Path) -> str | None:
    """Why a file is no image by its suffix, as a phrase; None if it is one."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return None
    if suffix in OTHER_SUFFIXES:
        return f"{suffix[1:].upper()} files are not read; convert it to PNG"
    return "not an image by its suffix"


def unusable(path: Path) -> str | None:
    """Why a file cannot be an image, judged without opening it; None if it can."""
    if any("\ud800" <= letter <= "\udfff" for letter in str(path)):
        return "its name is not UTF-8; rename it"
    if fault := suffix_fault(path):
        return fault
    if not path.is_file():
        return "a broken link, or not a regular file"
    return None


_IMAGE_NAME = rf"(\S.*?(?:{'|'.join(map(re.escape, sorted(SUFFIXES)))}))"


_TWO_IMAGES = re.compile(rf"\s*{_IMAGE_NAME}\s+{_IMAGE_NAME}\s*", re.IGNORECASE)


def pairs_in(file: Path, below: Path) -> Iterator[tuple[Path, Path]]:
    """The two images that each line of a text file names, from the folder `below`, with or without a `/` in front.

    Raises UserError for another line, and a file that is not UTF-8.
    """
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file}: not a text in UTF-8; download it again") from None
    for number, line in enumerate(lines, 1):
        match = _TWO_IMAGES.fullmatch(line)
        if match:
            first, second = (below / name.lstrip("/") for name in match.groups())
            yield first, second
        elif line.strip():
            raise UserError(f"{file}:{number}: does not name two images; mend the line, or download the list again")
