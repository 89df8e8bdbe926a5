"""Borders around a picture: black bars, and bars that show a blurred and enlarged copy of the picture between them."""

from collections.abc import Sequence
from functools import reduce

import cv2
import numpy as np
from numpy.typing import NDArray

from tasks.tables.crop import Box
from tasks.tables.picture import Image, shrink

Plane = NDArray[np.uint8]  # [H, W]
Floats = NDArray[np.float32]

BLACK = 72  # the lightest level, of 255, of a black bar: copies with lifted brightness have bars this light
EVEN = 12  # the pixels of a bar stay within this of its level, and the picture begins with a step of more
STEP = 3  # lines within which the picture has begun: scaling and coding blur its edge
CLEAR, STRAIGHT = 0.7, 0.25  # shares of a bar's length along which the picture clearly, or at least, begins at one line
ROUGH = 0.15  # largest share of the pixels of a bar, marks apart, that are unlike it by more than half of EVEN
MARKED = 0.3  # largest share of a bar that marks and subtitles take
LIT = 0.7  # least share of what is inside borders that is unlike them in some picture: text on black is less
CONTENT = 0.1  # least width and height of what is inside borders, as a fraction of the frame's

SIDE = 160  # longest side of the pictures in which blurred bars are sought
LINE = 0.35  # least share of a line of pixels, over all pictures, with a step across it: the edge of a blurred bar
SOFT = 0.4  # a blurred bar has at most this much of the detail of the picture beside it
COPY = 0.75  # least correlation of blurred bars with what the picture, enlarged and blurred, would make of them


def content_box(images: Sequence[Image]) -> Box:
    """The part of pictures of one size, RGB [H, W, 3], that is no border, in their pixels; never empty.

    The whole frame where there are no borders, and where what they would leave is no picture.
    """
    inner = inside_black([largest_channel(image) for image in images])
    cut = [image[inner.y : inner.y + inner.h, inner.x : inner.x + inner.w] for image in images]
    part = inside_blurred([np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8) for image in cut])
    return Box(inner.x + part.x, inner.y + part.y, part.w, part.h)


def largest_channel(image: Image) -> Plane:
    """The level of each pixel of an RGB picture that tells whether it is black: a band of deep red or blue is dark to
    the eye, but not black."""
    red, green, blue = cv2.split(image)
    return np.asarray(cv2.max(cv2.max(red, green), blue), np.uint8)


def inside_black(levels: Sequence[Plane]) -> Box:
    """What is inside black bars in planes of levels [H, W] of one size, in their pixels.

    A bar is dark, even and still in all pictures and ends in a straight edge, so that a title on black, a night and a
    fade have none. A mark or a subtitle inside a bar is part of it.
    """
    height, width = levels[0].shape
    whole = Box(0, 0, width, height)
    lightest, darkest = reduce(np.maximum, levels), reduce(np.minimum, levels)
    top, bottom = black_lines(lightest, darkest), black_lines(lightest[::-1], darkest[::-1])
    rows = slice(top, height - bottom) if top + bottom < height else slice(0, height)
    light, dark = lightest[rows].T, darkest[rows].T
    left, right = black_lines(light, dark), black_lines(light[::-1], dark[::-1])
    inner = Box(left, top, width - left - right, height - top - bottom)
    if inner == whole or inner.w < max(1, CONTENT * width) or inner.h < max(1, CONTENT * height):
        return whole
    picture = lightest[inner.y : inner.y + inner.h, inner.x : inner.x + inner.w]
    lit = (picture > int(lightest.min()) + EVEN).mean() >= LIT
    return inner if lit and all(_taken(plane, inner) <= MARKED for plane in levels) else whole


def _taken(plane: Plane, inner: Box) -> float:
    """The share of what is outside ``inner`` that is not black."""
    outside = np.ones(plane.shape, np.bool_)
    outside[inner.y : inner.y + inner.h, inner.x : inner.x + inner.w] = False
    return float((plane[outside] > BLACK + EVEN).mean()) if outside.any() else 0.0


def black_lines(lightest: Plane, darkest: Plane) -> int:
    """How many of the first lines are black bar, given the lightest and darkest level of each pixel [lines, length]."""
    level = int(np.median(lightest[:2]))
    if level > BLACK or len(lightest) <= STEP:
        return 0
    unlike = np.maximum(lightest.astype(np.int16) - level, level - darkest.astype(np.int16))
    taken = (unlike > EVEN).mean(axis=1)
    if taken[:2].max() > MARKED:
        return 0
    begins = ((unlike[:-STEP] <= EVEN) & (unlike[STEP:] - unlike[:-STEP] > EVEN)).mean(axis=1)
    # The picture begins at one line nearly everywhere, whatever a mark or subtitles took of the bar before. In a dark
    # film less of it is seen to begin; then nothing else may be in the bar.
    last = int(np.flatnonzero(taken > MARKED)[0]) if (taken > MARKED).any() else 0
    lines = 0
    for edge in np.flatnonzero(begins >= CLEAR).tolist():
        if taken[: edge + 1].mean() <= 0.5:  # of all pictures together; of any one it is asked in the end
            lines = int(begins[edge : edge + STEP].argmax()) + edge + STEP + 2
            break
    else:
        edges = [edge for edge in np.flatnonzero(begins[:last] >= STRAIGHT).tolist() if edge >= last - STEP]
        lines = min(edges[0] + STEP, last) + 2 if edges else 0
    # Dark water and night skies are even, too, but not as even as what was never filmed.
    if not lines:
        return 0
    plain = unlike[: max(2, lines - STEP - 2)]
    plain = plain[plain <= EVEN]
    return lines if (plain > EVEN // 2).sum() <= ROUGH * plain.size else 0


def inside_blurred(luma: Sequence[Plane]) -> Box:
    """What is inside bars that show a blurred, enlarged copy of it, in planes of luma [H, W] of one size, in pixels.

    Such bars lie left and right of a tall picture in a wide frame, or above and below a wide one in a tall frame. They
    are as wide as each other, soft, and end in a straight line.
    """
    height, width = luma[0].shape
    # Black and faded pictures show no copy of anything: of pictures from all over, the most contrasted tell.
    spaced = [luma[i] for i in np.unique(np.linspace(0, len(luma) - 1, 10).round().astype(int))]
    pairs = sorted(((shrink(plane, SIDE), plane) for plane in spaced), key=lambda pair: -float(pair[0].std()))[:5]
    chosen = [plane for _, plane in pairs]
    small = np.stack([plane for plane, _ in pairs]).astype(np.float32)
    if min(small.shape[1:]) < 16:
        return Box(0, 0, width, height)
    columns = blurred_columns(small)
    if columns:
        left, right = _fine_edges(chosen, columns, small.shape[2])
        return Box(left, 0, right - left, height)
    rows = blurred_columns(np.ascontiguousarray(small.transpose(0, 2, 1)))
    if rows:
        top, bottom = _fine_edges([plane.T for plane in chosen], rows, small.shape[1])
        return Box(0, top, width, bottom - top)
    return Box(0, 0, width, height)


def _fine_edges(luma: Sequence[Plane], bars: int, width: int) -> tuple[int, int]:
    """First column and end of what is between bars that are ``bars`` wide in pictures of ``width``, at full size."""
    full = luma[0].shape[1]
    scale = full / width
    step = np.mean([cv2.absdiff(plane[:, 1:], plane[:, :-1]).mean(axis=0) for plane in luma], axis=0)

    def strongest(near: float) -> int:
        first = max(0, int(near - 1.5 * scale))
        return first + int(step[first : int(near + 1.5 * scale) + 1].argmax()) + 1

    return strongest(bars * scale) + 1, strongest(full - bars * scale - 1) - 1


def blurred_columns(pictures: Floats) -> int:
    """How many columns on either side of pictures [T, H, W] are blurred copies of what is between them; 0: none."""
    width = pictures.shape[2]
    across = np.abs(np.diff(pictures, axis=2))  # between column x and x + 1
    line = (across > 5).mean(axis=(0, 1))
    detail = np.mean([np.abs(cv2.Laplacian(picture, cv2.CV_32F)).mean(axis=0) for picture in pictures], axis=0)
    found = []
    for bars in range(max(4, width // 24), int(width * (1 - CONTENT) / 2)):
        edge = min(line[bars - 1], line[width - bars - 1])
        sides, middle = np.r_[detail[1 : bars - 1], detail[width - bars + 1 : -1]], detail[bars + 1 : width - bars - 1]
        if edge >= LINE and np.median(sides) < SOFT * np.median(middle):
            found.append((float(edge), bars))
    clearest = sorted(found, reverse=True)[:6]
    return next((bars for _, bars in clearest if _copied(pictures, bars) >= COPY), 0)


def _copied(pictures: Floats, bars: int) -> float:
    """How well bars correlate with what the picture between them, enlarged to fill the frame, would make of them."""
    _, height, width = pictures.shape
    sigma = width / 32
    sides = np.r_[0 : bars - 1, width - bars + 1 : width]
    actual = np.stack([cv2.GaussianBlur(picture, (0, 0), sigma)[:, sides] for picture in _without(pictures, bars)])
    best = -1.0
    for zoom in (1.0, 1.1, 1.25, 1.5, None):
        predicted = []
        for picture in pictures:
            inner = picture[:, bars : width - bars]
            w, h = (width, height) if zoom is None else (width * zoom, height * zoom * width / inner.shape[1])
            large = cv2.resize(inner, (round(w), max(height, round(h))), interpolation=cv2.INTER_LINEAR)
            y, x = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
            filled = large[y : y + height, x : x + width]
            predicted.append(cv2.GaussianBlur(filled, (0, 0), sigma)[:, sides])
        best = max(best, _correlation(np.stack(predicted), actual))
    return best


def _without(pictures: Floats, bars: int) -> Floats:
    """The pictures with what is between the bars replaced by the bars' inmost columns: blur does not mix it in."""
    width = pictures.shape[2]
    filled, middle = pictures.copy(), width // 2
    filled[:, :, bars - 1 : middle] = pictures[:, :, bars - 2 : bars - 1]
    filled[:, :, middle : width - bars + 1] = pictures[:, :, width - bars + 1 : width - bars + 2]
    return filled


def _correlation(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    power = float(np.sqrt((a * a).mean() * (b * b).mean()))
    return float((a * b).mean()) / power if power > 1 else 0.0
