"""Colour spaces: an embedded profile, and the conversion to sRGB."""

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from pipeline.images.picture import Picture, UnusableImageError


def srgb_image(shown: Picture) -> tuple[np.ndarray, str | None]:
    """The pixels of a picture, converted from its embedded profile to sRGB, and that profile's name if that changed them.

    Raises UnusableImageError for real transparency, and for 16 bits in another colour space than sRGB. A profile that cannot
    be used is ignored, and `profile_fault` says so.
    """
    if shown.alpha is not None:
        raise UnusableImageError("alpha channel (transparent in places); flatten it")
    profile = _profile(shown.icc, shown.pixels.shape[2]) if shown.icc else None
    if profile is None or profile.transform is None:
        return shown.pixels, None
    if shown.pixels.dtype != np.uint8:
        raise UnusableImageError(f"16 bits a channel in the colours of {profile.name}; convert it to sRGB")
    grey = shown.pixels.shape[2] == 1
    image = Image.fromarray(shown.pixels[..., 0] if grey else shown.pixels)
    converted = np.asarray(profile.transform.apply(image))
    return (np.ascontiguousarray(converted[..., :1]) if grey else converted), profile.name


def profile_fault(shown: Picture) -> str | None:
    """Why the embedded profile of a picture is ignored, as a phrase; None if it is used, or there is none."""
    return _profile(shown.icc, shown.pixels.shape[2]).fault if shown.icc else None


@dataclass(frozen=True)
class _Profile:
    """An embedded profile for images of so many channels. transform: to sRGB, None if it is sRGB or cannot be used."""

    name: str
    transform: Any
    fault: str | None


@lru_cache(maxsize=16)
def _profile(icc: bytes, channels: int) -> _Profile:
    mode = "L" if channels == 1 else "RGB"
    try:
        profile = ImageCms.getOpenProfile(io.BytesIO(icc))
        name = " ".join(ImageCms.getProfileName(profile).split()) or "an unnamed profile"
        flags = ImageCms.Flags.NOCACHE  # the cache of a transform is not safe for several threads
        transform = ImageCms.buildTransform(profile, _srgb(), mode, "RGB", flags=flags)
        probe = _probe(channels)
        converted = np.asarray(transform.apply(Image.fromarray(probe))).astype(int)
    except Exception:  # it is not documented what damaged files raise
        return _Profile("", None, "its colour profile cannot be used, and is not heeded")
    alike = np.abs(converted - probe.reshape(*probe.shape[:2], -1)).max() <= 1
    return _Profile(name, None if alike else transform, None)


@lru_cache(maxsize=1)
def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


def _probe(channels: int) -> np.ndarray:
    """Colours that tell a profile from sRGB: all greys, or a grid of 17x17x17."""
    if channels == 1:
        return np.arange(256, dtype=np.uint8)[None]
    steps = np.linspace(0, 255, 17).astype(np.uint8)
    return np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(17, -1, 3)
