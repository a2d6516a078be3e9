"""Published dataset layouts: a folder tree becomes manifest rows. One file per layout."""

from pathlib import Path

from pipeline.errors import UserError, nearest
from pipeline.layouts.base import Layout, Row
from pipeline.layouts.bsds500 import BSDS500
from pipeline.layouts.div2k import DIV2K, Flickr2K
from pipeline.layouts.dnd import DND
from pipeline.layouts.files import safe_key
from pipeline.layouts.folder import Folder
from pipeline.layouts.gopro import GoPro
from pipeline.layouts.gtrain import GTRain
from pipeline.layouts.hide import HIDE
from pipeline.layouts.istd import ISTD
from pipeline.layouts.pairs import Pairs
from pipeline.layouts.rain13k import Rain13K
from pipeline.layouts.rain100 import Rain100
from pipeline.layouts.rain12000 import Rain12000
from pipeline.layouts.rain14000 import Rain14000, Rain14000Scenes
from pipeline.layouts.raindrop import Raindrop
from pipeline.layouts.realblur import RealBlur
from pipeline.layouts.scenes import Scenes
from pipeline.layouts.sidd import SIDD
from pipeline.layouts.spa import SPA, SPAScenes
from pipeline.layouts.srd import SRD
from pipeline.layouts.testsets import BSD100, LIVE1, S14, T91, Classic5, Set5, Set14, Urban100
from pipeline.layouts.timelap import TimeLap

__all__ = ["LAYOUTS", "Layout", "Row", "layout", "safe_key"]

LAYOUTS: dict[str, type[Layout]] = {
    each.name: each
    for each in (
        BSD100,
        BSDS500,
        Classic5,
        DIV2K,
        DND,
        Flickr2K,
        Folder,
        GoPro,
        GTRain,
        HIDE,
        ISTD,
        LIVE1,
        Pairs,
        Rain100,
        Rain12000,
        Rain13K,
        Rain14000,
        Rain14000Scenes,
        Raindrop,
        RealBlur,
        S14,
        Scenes,
        Set14,
        Set5,
        SIDD,
        SPA,
        SPAScenes,
        SRD,
        T91,
        TimeLap,
        Urban100,
    )
}


def layout(name: str, dataset: str, root: Path, variant: str | None = None) -> Layout:
    """The layout `name` of the data set `dataset`, unpacked at `root`.

    variant: which of the releases that the layout knows; None where it knows one only.
    Raises UserError for an unknown layout or variant, a data set name unfit for keys, or a root that is no folder.
    """
    if name not in LAYOUTS:
        raise UserError(f"{dataset}: unknown layout {name!r}; {nearest(name, list(LAYOUTS))}")
    return LAYOUTS[name](dataset, root, variant)
