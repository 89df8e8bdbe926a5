"""The detection network that finds lines of text in a picture: PP-OCR, in the wheel of rapidocr, run by onnxruntime."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import rapidocr

from tasks.curation.denormals import denormals_as_zero
from tasks.tables.crop import Box, padded, scaled
from tasks.tables.picture import Image, resized

MODEL = Path(rapidocr.__file__).parent / "models" / "PP-OCRv6_det_small.onnx"
STRIDE = 32  # the network takes sides that are multiples of this


@cache
def _session() -> onnxruntime.InferenceSession:
    """The detection network; one a process, as its runs may overlap. Clips run side by side, so it has one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])


def detect(image: Image, min_score: float) -> list[tuple[Box, float]]:
    """Text lines in an RGB picture [H, W, 3], with their scores (mean probability inside the line).

    Post-processing as of Differentiable Binarization (Liao et al., 2020) with upright boxes: the network marks the
    kernels of text lines, which are then grown by the distance by which its training labels were shrunk.
    """
    height, width = (max(STRIDE, round(side / STRIDE) * STRIDE) for side in image.shape[:2])
    small = resized(image, width, height)[..., ::-1]
    pixels = (small.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]
    with denormals_as_zero():
        probability = _session().run(None, {"x": pixels})[0][0, 0]
    kernels = cv2.dilate((probability > 0.3).astype(np.uint8), np.ones((2, 2), np.uint8))
    x_scale, y_scale = image.shape[1] / width, image.shape[0] / height
    found = []
    for contour in cv2.findContours(kernels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
        corners = cv2.boxPoints(cv2.minAreaRect(contour))
        x, y, w, h = cv2.boundingRect(contour)
        mask = np.zeros((h, w), np.uint8)
        cv2.fillPoly(mask, [np.round(corners - (x, y)).astype(np.int32)], 1)
        score = cv2.mean(probability[y : y + h, x : x + w], mask)[0]
        if min(w, h) < 3 or score < min_score:
            continue
        grow = 1.6 * cv2.contourArea(corners) / max(1.0, cv2.arcLength(corners, True))
        line = padded(Box(x, y, w, h), round(grow), round(grow), Box(0, 0, width, height))
        found.append((scaled(line, x_scale, y_scale), score))
    return found
