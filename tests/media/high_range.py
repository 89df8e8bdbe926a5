"""Pictures of standard range as PQ and HLG, by the formulas of ITU-R BT.2100, and small files of them."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

# ITU-R BT.2087: linear RGB of BT.709 as that of BT.2020.
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
PQ, HLG = ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67
DIFFUSE_WHITE = 203  # cd/m2


def linear(srgb: np.ndarray) -> np.ndarray:
    code = srgb / 255
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


def pq_codes(cd_m2: np.ndarray) -> np.ndarray:
    """The inverse EOTF of SMPTE ST 2084, as uint16 of full range."""
    power = (np.asarray(cd_m2) / 10000) ** (2610 / 16384)
    code = ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)
    return np.rint(code * 65535).astype(np.uint16)


def hlg_codes(cd_m2: np.ndarray) -> np.ndarray:
    """BT.2100: a display's light, RGB, to the HLG codes that a display of 1000 cd/m2 shows so, uint16 of full range."""
    light = np.asarray(cd_m2) / 1000
    luminance = np.maximum(light @ (0.2627, 0.6780, 0.0593), 1e-9)
    scene = light * luminance[..., None] ** (1 / 1.2 - 1)
    code = np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    )
    return np.rint(code * 65535).astype(np.uint16)


def write_high_range(path: Path, rgb: np.ndarray, transfer: int, codec: str = "libx264", frames: int = 1) -> None:
    """A video of the sRGB picture ``rgb`` [h, w, 3] in BT.2020 and 10 bits, its white at DIFFUSE_WHITE."""
    light = linear(rgb) @ TO_BT2020.T * DIFFUSE_WHITE
    codes = pq_codes(light) if transfer == PQ else hlg_codes(light)
    frame = av.VideoFrame.from_ndarray(codes, format="rgb48le").reformat(
        format="yuv420p10le", dst_colorspace=Colorspace.BT2020, dst_color_range=ColorRange.MPEG
    )
    frame.colorspace, frame.color_range = 9, ColorRange.MPEG
    frame.color_primaries, frame.color_trc = ColorPrimaries.BT2020, transfer
    scheduling = os.sched_getscheduler(0), os.sched_getparam(0)
    options = {"crf": "8", "x265-params": "bframes=0:pools=1:log-level=error"}
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, 24, options=options)
        stream.height, stream.width, stream.pix_fmt = *rgb.shape[:2], "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_range = 9, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT2020, transfer
        for number in range(frames):
            frame.pts, frame.time_base = number, Fraction(1, 24)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    # SVT-AV1 gives the thread that calls it real-time priority where it may (root), and all its later children too.
    os.sched_setscheduler(0, *scheduling)
