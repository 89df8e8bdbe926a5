"""Image files as a viewer sees them: upright, in sRGB, whole.

Files are known by their content, never by their names. Pillow reads them; a file that it can read only in part, one
that holds no image, and one that is an animation raise ``BadSource`` in words. Print densities are no matter of
pixels and change nothing.

See-through images lie on white, as on a page. Of a file with several pages (TIFF, MPO) the first is read, as viewers
show it. Colours of an embedded profile (ICC) go to sRGB; a profile that is broken is passed over, as viewers do. Images
tagged as high dynamic range or a wide gamut (AVIF's nclx box, PNG's cICP chunk) go the way of videos (``colour``), from
the 8 bits a channel that Pillow gives. Of a JPEG with a gain map the base image is read, which is standard range.
"""

import io
import os
import struct
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image as Pillow
from PIL import ImageCms, UnidentifiedImageError

from media.colour import is_srgb, to_srgb
from media.display import Image, over_background
from media.orientation import Orientation
from media.source import BadSource

# Bytes at a file's start, at an offset, for each format that Pillow is let read; a file of any other is no image.
_SIGNATURES = {
    "JPEG": [(0, b"\xff\xd8\xff")],
    "PNG": [(0, b"\x89PNG\r\n\x1a\n")],
    "WEBP": [(0, b"RIFF"), (8, b"WEBP")],
    "GIF": [(0, b"GIF8")],
}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0\x08\0", b"MM\0+\0\x08")
_BMP_HEADERS = {12, 40, 52, 56, 64, 108, 124}  # sizes of the header that follows the file header of 14 bytes
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}

_ORIENTATION = 0x0112
_SIXTEEN_BITS = {"I;16", "I;16L", "I;16B", "I;16N"}
_NO_WHITE = {"I", "F"}  # 32 bits a channel: nothing says which number is white
# Pillow's plugins let their parsers' own errors through.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    RuntimeError,
    ArithmeticError,
    struct.error,
)
_ANIMATED = {"GIF", "PNG", "WEBP", "AVIF"}


def image_format(head: bytes) -> str | None:
    """The format that a file's first bytes (64 or more) tell, in Pillow's words, or "HEIC"; None for all else."""
    for name, marks in _SIGNATURES.items():
        if all(head[at:].startswith(mark) for at, mark in marks):
            return name
    if head.startswith(_TIFF):
        return "TIFF"
    if head.startswith(b"BM") and len(head) >= 18 and struct.unpack_from("<I", head, 14)[0] in _BMP_HEADERS:
        return "BMP"
    if head[4:8] == b"ftyp" and len(head) >= 16:
        brands = _brands(head)
        return "AVIF" if brands & _AVIF_BRANDS else "HEIC" if head[8:12] in _HEIC_BRANDS else None
    return None


def is_image(head: bytes) -> bool:
    """Whether a file that starts so is one image, to be read by ``read_image``; else it is for a reader of videos.

    GIF and animated PNG are videos. Animated WebP, AVIF and HEIC count as images, since no reader of videos takes
    them; ``read_image`` says so. An animated PNG tells what it is before its first pixels: mostly in the first few
    hundred bytes, after 4,096 only where a large profile comes first.
    """
    kind = image_format(head)
    animated_png = kind == "PNG" and b"acTL" in head.partition(b"IDAT")[0]
    return kind is not None and kind != "GIF" and not animated_png


def read_image(file: str | os.PathLike[str] | IO[bytes]) -> Image:
    """The image of a path or an open file, upright: RGB uint8 [h, w, 3].

    BadSource: it is truncated, no image, an animation, larger than Pillow's limit against decompression bombs (179
    million pixels), or of a kind that cannot be read. OSError: the file itself cannot be read.
    """
    # What is read first cannot fail later for want of a network: from here on every error is the file's own.
    data = Path(file).read_bytes() if isinstance(file, str | os.PathLike) else file.read()
    if not data:
        raise BadSource("the file is empty")
    kind = image_format(data[:4096])
    if kind is None:
        raise BadSource("not an image that can be read: its content is of no known format")
    try:
        with Pillow.open(io.BytesIO(data), formats=None if kind == "HEIC" else [kind]) as image:
            if kind in _ANIMATED and getattr(image, "n_frames", 1) > 1:
                raise BadSource(f"an animated {kind} of {image.n_frames} pictures, not an image")  # type: ignore[attr-defined]
            image.load()
            pixels = _srgb(image, *_code_points(data, kind))
            orientation = _orientation(image)
    except BadSource:
        raise
    except Pillow.DecompressionBombError as problem:
        raise BadSource(f"too large an image: {problem}") from problem
    except UnidentifiedImageError as problem:
        if kind == "HEIC":
            raise BadSource("a HEIC image, and no decoder for HEIC is installed") from problem
        raise BadSource(f"truncated or damaged: its header says {kind}, but it cannot be opened") from problem
    except _DAMAGED as problem:
        raise BadSource(f"the image is truncated or damaged: {problem}") from problem
    return orientation.upright(pixels)


def _srgb(image: Pillow.Image, transfer: int, primaries: int) -> Image:
    """The loaded image as it is stored, RGB uint8 [h, w, 3], of colours that are tagged so (ITU-T H.273)."""
    if image.mode in _NO_WHITE:
        raise BadSource(f"an image of 32 bits a channel (mode {image.mode}), in which no number is white")
    if image.mode in _SIXTEEN_BITS:
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    profile = image.info.get("icc_profile")
    see_through = image.has_transparency_data
    full = image.convert("RGBA") if see_through else image
    direct = full if full.mode in ("RGB", "CMYK", "L") else full.convert("RGB")
    colours = np.array(_by_profile(direct, profile).convert("RGB"))
    if not profile and not is_srgb(transfer, primaries):
        colours = to_srgb(colours.astype(np.uint16) * 257, transfer, primaries)
    return over_background(colours, np.asarray(full)[..., 3] / 255) if see_through else colours


def _code_points(data: bytes, kind: str) -> tuple[int, int]:
    """The numbers of transfer and primaries that a file's header tells (ITU-T H.273); 2, which is unknown, if none."""
    if kind == "AVIF" and (at := data.find(b"colrnclx")) >= 0:  # ISO/IEC 23000-22: primaries, transfer, 16 bits each
        primaries, transfer = struct.unpack_from(">HH", data, at + 8)
        return transfer, primaries
    if kind == "PNG" and (at := data.find(b"cICP", 0, data.find(b"IDAT"))) >= 0:  # PNG 3, 11.3.2.6: 8 bits each
        return data[at + 5], data[at + 4]
    return 2, 2


def _by_profile(image: Pillow.Image, profile: bytes | None) -> Pillow.Image:
    """RGB, CMYK or grey with an embedded ICC profile as sRGB; as it is without one or where the profile is broken."""
    if not profile:
        return image
    try:
        told = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "RGB" and "sRGB" in ImageCms.getProfileDescription(told):
            return image
        converted = ImageCms.profileToProfile(image, told, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image
    return converted or image


def _orientation(image: Pillow.Image) -> Orientation:
    """What the image's EXIF says; upright where its EXIF is broken, as viewers take it.

    To be asked after the pixels are loaded: Pillow turns TIFF itself and then takes the tag away.
    """
    try:
        return Orientation.of_exif(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGED:
        return Orientation()


def _brands(head: bytes) -> set[bytes]:
    """The brands of an ISO base media file: what it is and what it is compatible with."""
    listed = head[8 : max(16, struct.unpack_from(">I", head)[0])]
    return {listed[at : at + 4] for at in range(0, len(listed), 4) if at != 4}


_SRGB = ImageCms.createProfile("sRGB")
