"""The loaders that load.py measures beside memoir's: what they store, and how their batches are opened.

Each function of PEERS takes the pairs, an empty folder and a number of cores, and returns what opens its batches. It raises
ImportError where its package is not installed.
"""

from .chunks import litdata_of_arrays, litdata_of_png
from .common import BATCH, PATCH, Batches, Open, Pair, decoded, png
from .files import folder_of_png, lmdb_of_png
from .mosaic import mosaic_of_arrays, mosaic_of_png
from .remote import REMOTE, upload
from .tars import energon_of_png, tars_of_png
from .threads import grain_of_arrays, grain_of_png, spdl_of_png, spdl_of_png_by_ffmpeg

__all__ = ["BATCH", "PATCH", "PEERS", "RAW", "REMOTE", "Batches", "Open", "Pair", "decoded", "png", "upload"]

RAW = {"mosaic, raw": mosaic_of_arrays, "litdata, raw": litdata_of_arrays, "grain, raw": grain_of_arrays}
PEERS = {
    "folder, PNG": folder_of_png,
    "lmdb, PNG": lmdb_of_png,
    "webdataset, PNG": tars_of_png,
    "energon, PNG": energon_of_png,
    "mosaic, PNG": mosaic_of_png,
    "litdata, PNG": litdata_of_png,
    "grain, PNG": grain_of_png,
    "spdl, PNG": spdl_of_png,
    "spdl, PNG by FFmpeg": spdl_of_png_by_ffmpeg,
    **RAW,
}
