"""Published dataset layouts: a folder tree becomes manifest rows. One file per layout."""

from pathlib import Path

from pipeline.errors import UserError, nearest
from pipeline.layouts.base import Layout, Row, safe_key
from pipeline.layouts.bsds500 import BSDS500
from pipeline.layouts.folder import Folder
from pipeline.layouts.istd import ISTD
from pipeline.layouts.rain13k import Rain13K
from pipeline.layouts.scenes import Scenes

__all__ = ["LAYOUTS", "Layout", "Row", "layout", "safe_key"]

LAYOUTS: dict[str, type[Layout]] = {each.name: each for each in (BSDS500, Folder, ISTD, Rain13K, Scenes)}


def layout(name: str, dataset: str, root: Path, variant: str | None = None) -> Layout:
    """The layout `name` of the data set `dataset`, unpacked at `root`.

    variant: which of the releases that the layout knows; None where it knows one only.
    Raises UserError for an unknown layout or variant, a data set name unfit for keys, or a root that is no folder.
    """
    if name not in LAYOUTS:
        raise UserError(f"{dataset}: unknown layout {name!r}; {nearest(name, list(LAYOUTS))}")
    return LAYOUTS[name](dataset, root, variant)
