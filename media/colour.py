"""What colours a decoded frame means, and how high dynamic range and wide gamuts become the sRGB that all else expects.

**Matrix.** The frame's tag says how its luma and chroma make red, green and blue. Where there is no tag, pictures of
high definition (720 rows or 1280 columns and more) are BT.709 and smaller ones are BT.601, as players take it.

**High dynamic range.** PQ (SMPTE ST 2084) and HLG (ARIB STD-B67), both in ITU-R BT.2100, become light in cd/m2: PQ says
it absolutely, HLG for a display of 1000 cd/m2 with its system gamma of 1.2. Diffuse white, 203 cd/m2 (ITU-R BT.2408),
becomes the white of standard range. Primaries go to BT.709 through XYZ. Light up to KNEE of diffuse white stays as it
is; from there on it rolls off as a logarithm, so that PEAK_CD_M2 comes out as full white and diffuse white itself as
248 of 255. The curve works on the largest of the three channels and the others keep their ratio to it, one of the ways
of ITU-R BT.2390 (section 5): no hue turns.

**Wide gamut of standard range.** BT.2020 and Display P3 go to BT.709 in linear light; what lies outside is clipped.

BT.601 and BT.709 primaries are near enough to be taken for the same: to convert them would change no pixel by more than
a compressed video does.
"""

from functools import cache
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc
from numpy.typing import NDArray

from media.source import BadSource

DIFFUSE_WHITE_CD_M2 = 203.0
PEAK_CD_M2 = 1000.0
KNEE = 0.9  # of diffuse white, in linear light: 244 of 255 in sRGB
BAND_PIXELS = 1 << 15  # worked on at once: what stays in a processor's cache takes half the time

HD_HEIGHT, HD_WIDTH = 720, 1280

# Chromaticities x, y of red, green, blue; the white of all of them is D65.
_CHROMATICITIES = {
    ColorPrimaries.BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    ColorPrimaries.BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    ColorPrimaries.SMPTE432: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_D65 = (0.3127, 0.3290)
_HIGH_RANGE = {ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67}

# Numbers of ITU-T H.273 that are no matrix: RGB (said of YUV), unspecified, reserved.
_NO_MATRIX = {0, 2, 3}
_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
}


def matrix_of(frame: av.VideoFrame) -> int:
    """The matrix that makes RGB of the frame's YUV, as swscale numbers it.

    BadSource: the frame is tagged with a matrix that is not a matrix of R'G'B' (YCgCo, ICtCp, constant luminance).
    """
    tag = int(frame.colorspace)
    if tag in _MATRICES:
        return int(_MATRICES[tag])
    if tag not in _NO_MATRIX:
        raise BadSource(f"its colours are stored by matrix {tag} of ITU-T H.273, which cannot be read")
    if frame.color_primaries == ColorPrimaries.BT2020 or frame.color_trc in _HIGH_RANGE:
        return int(Colorspace.BT2020)
    high_definition = frame.height >= HD_HEIGHT or frame.width >= HD_WIDTH
    return int(Colorspace.ITU709 if high_definition else Colorspace.ITU601)


def is_srgb(transfer: int, primaries: int) -> bool:
    """Whether RGB of these tags (ITU-T H.273) is taken for sRGB as it is: standard range, no wide gamut."""
    return transfer not in _HIGH_RANGE and _primaries(primaries) == ColorPrimaries.BT709


def to_srgb(rgb: NDArray[np.uint16], transfer: int, primaries: int) -> NDArray[np.uint8]:
    """RGB of high dynamic range or a wide gamut as sRGB.

    Args:
        rgb: R'G'B' of full range, uint16 [h, w, 3], as ``transfer`` encodes it.
        transfer, primaries: their numbers in ITU-T H.273, as frames are tagged. Without a tag for its primaries high
            dynamic range is BT.2020.

    Returns:
        uint8 [h, w, 3].
    """
    if transfer in _HIGH_RANGE and primaries == ColorPrimaries.UNSPECIFIED:
        primaries = ColorPrimaries.BT2020
    image = np.empty(rgb.shape, np.uint8)
    rows = max(1, BAND_PIXELS // rgb.shape[1])
    for row in range(0, len(rgb), rows):
        image[row : row + rows] = _band_to_srgb(rgb[row : row + rows], transfer, primaries)
    return image


def _band_to_srgb(rgb: NDArray[np.uint16], transfer: int, primaries: int) -> NDArray[np.uint8]:
    light = _looked_up(_light(transfer), rgb)
    if transfer == ColorTrc.ARIB_STD_B67:
        light *= _hlg_gain(light)[..., None]
    if _primaries(primaries) != ColorPrimaries.BT709:
        light = np.asarray(cv2.transform(light, _to_bt709(_primaries(primaries))), np.float32)
    np.maximum(light, 0, out=light)
    if transfer in _HIGH_RANGE:
        largest = np.maximum(np.maximum(light[..., 0], light[..., 1]), light[..., 2])
        light *= (roll_off(largest) / np.maximum(largest, np.finfo(np.float32).tiny))[..., None]
    return _looked_up(_srgb_codes(), (np.minimum(light, 1) * 65535 + 0.5).astype(np.uint16))


def roll_off(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """The tone curve: light in units of diffuse white, any shape, to light in units of the white of standard range."""
    room, bend = 1 - KNEE, _bend()
    over = np.maximum(light - KNEE, 0) / room
    bent = KNEE + room / bend * np.log1p(bend * over)
    return np.where(light > KNEE, np.minimum(bent, 1), light).astype(np.float32)


@cache
def _bend() -> float:
    """The b of log(1 + b x) / b that is 1 where x is the peak; its slope is 1 at x = 0, so that no edge shows."""
    peak = (PEAK_CD_M2 / DIFFUSE_WHITE_CD_M2 - KNEE) / (1 - KNEE)
    bend = 1.0
    for _ in range(50):
        bend = float(np.log1p(bend * peak))
    return bend


def _primaries(tag: int) -> int:
    return tag if tag in _CHROMATICITIES else ColorPrimaries.BT709


def _looked_up(table: NDArray[Any], codes: NDArray[np.uint16]) -> NDArray[Any]:
    """``table[codes]`` for pixels [h, w, 3]; OpenCV takes a quarter of the time of NumPy."""
    return np.asarray(cv2.LUT(np.ascontiguousarray(codes), table.reshape(1, -1)))


@cache
def _light(transfer: int) -> NDArray[np.float32]:
    """Linear light for each of the 65,536 codes of a channel, in units of white; for HLG the scene's light, 0 to 1."""
    code = np.arange(65536) / 65535
    if transfer == ColorTrc.SMPTE2084:
        light = _pq_cd_m2(code) / DIFFUSE_WHITE_CD_M2
    elif transfer == ColorTrc.ARIB_STD_B67:
        light = _hlg_scene(code)
    else:
        light = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


def _pq_cd_m2(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """The EOTF of SMPTE ST 2084, in cd/m2."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = code ** (1 / m2)
    return 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def _hlg_scene(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse OETF of ARIB STD-B67: the scene's light, 0 to 1."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)


def _hlg_gain(scene: NDArray[np.float32]) -> NDArray[np.float32]:
    """The OOTF of BT.2100 at 1000 cd/m2, in units of diffuse white per scene light; pixels [h, w, 3] to [h, w]."""
    luminance = scene @ np.array([0.2627, 0.6780, 0.0593], np.float32)
    return cv2.pow(luminance, 0.2) * np.float32(PEAK_CD_M2 / DIFFUSE_WHITE_CD_M2)


@cache
def _srgb_codes() -> NDArray[np.uint8]:
    """The sRGB code (IEC 61966-2-1) for each of 65,536 steps of linear light."""
    light = np.arange(65536) / 65535
    code = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(code * 255).astype(np.uint8)


@cache
def _to_bt709(primaries: int) -> NDArray[np.float32]:
    """[3, 3]: linear RGB of other primaries to that of BT.709."""
    return (np.linalg.inv(_to_xyz(ColorPrimaries.BT709)) @ _to_xyz(primaries)).astype(np.float32)


def _to_xyz(primaries: int) -> NDArray[np.float64]:
    """[3, 3]: linear RGB to CIE XYZ, scaled so that equal channels are D65 (SMPTE RP 177)."""
    columns = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in _CHROMATICITIES[ColorPrimaries(primaries)]]).T
    x, y = _D65
    return columns * np.linalg.solve(columns, np.array([x / y, 1.0, (1 - x - y) / y]))
