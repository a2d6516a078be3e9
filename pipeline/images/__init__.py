"""Reading and writing image files: the one place where files become arrays.

In: files from any source. Out: uint8 or uint16, (H, W, 1) grey or (H, W, 3) RGB. Begin with `source.read_image`; `picture`
decodes, `formats` reads the structure of files, `colour` converts to sRGB, `writing` writes.
"""

from pipeline.images.colour import profile_fault, srgb_image
from pipeline.images.picture import (
    LIMIT,
    SUFFIXES,
    Picture,
    UnusableImageError,
    picture,
    picture_size,
    pixel_limit,
    read_picture,
)
from pipeline.images.source import Facts, decode_image, matlab_image, read_image, read_part, source_facts, source_image
from pipeline.images.writing import check_format, write_image

__all__ = [
    "LIMIT",
    "SUFFIXES",
    "Facts",
    "Picture",
    "UnusableImageError",
    "check_format",
    "decode_image",
    "matlab_image",
    "picture",
    "picture_size",
    "pixel_limit",
    "profile_fault",
    "read_image",
    "read_part",
    "read_picture",
    "source_facts",
    "source_image",
    "srgb_image",
    "write_image",
]
