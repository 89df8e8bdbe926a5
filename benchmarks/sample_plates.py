"""Wide stills, painted from the two photographs inside scikit-learn.

Two photographs of 640 x 427 are not much footage. A plate is painted at the resolution it is shown at, from sharp
pieces of them (a pagoda, trees, bushes, a dahlia), in a layout and a colour grade that no other plate has.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_image

Frame = NDArray[Any]  # (height, width, 3) uint8 RGB
Sprite = NDArray[Any]  # (height, width, 4) uint8 RGB and alpha
Mask = NDArray[Any]  # (height, width) uint8, 0 or 255
Rng = np.random.Generator
Painter = Callable[[Rng, int, int], Frame]  # (rng, width, height) -> plate


@cache
def china() -> Frame:
    """The photograph of the pagoda over the lake."""
    return np.asarray(load_sample_image("china.jpg"))


@cache
def flower() -> Frame:
    """The photograph of the dahlia."""
    return sharpened(load_sample_image("flower.jpg"))


@cache
def land() -> Mask:
    """Mask of the pagoda and the plants in `china`: what is neither sky nor lake."""
    r, g, b = (china()[..., i].astype(np.int16) for i in range(3))
    return np.where((b >= r - 12) & (r + g + b > 380), 0, 255).astype(np.uint8)


def cut_out(photo: Frame, mask: Mask, left: int, top: int, right: int, bottom: int) -> Sprite:
    """The part of a photograph that a mask selects inside a box."""
    box = np.s_[top:bottom, left:right]
    return np.dstack([photo[box], cv2.GaussianBlur(mask[box], (3, 3), 0)])


@cache
def pagoda() -> Sprite:
    solid = cv2.morphologyEx(land(), cv2.MORPH_CLOSE, np.ones((9, 9)))
    solid[190:240, :97] = 0  # the tree and the far shore to the left of it
    return cut_out(china(), solid, 60, 28, 357, 345)


@cache
def tree() -> Sprite:
    half = cut_out(china(), land(), 545, 132, 636, 427)  # the photograph's edge cuts it, so it is mirrored
    return np.hstack([half, half[:, ::-1]])


@cache
def bush() -> Sprite:
    sprite = cut_out(china(), land(), 385, 274, 545, 427)
    ys, xs = np.mgrid[0 : 1 : sprite.shape[0] * 1j, -1 : 1 : sprite.shape[1] * 1j]
    crown = np.clip((1.08 - np.hypot(xs, np.maximum(ys - 0.6, 0) * 2.5)) * 6, 0, 1)  # round sides and foot
    sprite[..., 3] = (sprite[..., 3] * crown).astype(np.uint8)
    return sprite


@cache
def dahlia(hue: int = 0, saturation: float = 1.0) -> Sprite:
    """The blossom, its hue turned by `hue` (OpenCV units, 0 to 179)."""
    warm = (flower()[..., 0] > 110) & (flower()[..., 0].astype(int) > flower()[..., 2].astype(int) + 30)
    mask = cv2.morphologyEx(warm.astype(np.uint8) * 255, cv2.MORPH_CLOSE, np.ones((9, 9)))
    mask = cv2.erode(mask, np.ones((3, 3)))
    sprite = cut_out(flower(), mask, 164, 82, 450, 362)
    sprite[..., :3] = turned(sprite[..., :3], hue, saturation)
    return sprite


def bouquet() -> Sprite:
    """Three blossoms."""
    blossoms = [(dahlia(hue), x, y) for hue, x, y in ((165, 95, 105), (20, 205, 115), (140, 150, 200))]
    return arranged(300, 300, [(resized(sprite, 0.62), x, y) for sprite, x, y in blossoms])


def balloon() -> Sprite:
    """A hot-air balloon: a blossom that carries a basket."""
    basket = np.full((58, 76, 4), 255, np.uint8)
    basket[..., :3] = cv2.resize(china()[215:248, 190:233], (76, 58), interpolation=cv2.INTER_CUBIC)
    ropes = np.zeros((130, 150, 4), np.uint8)
    for top, bottom in ((5, 38), (145, 112)):
        cv2.line(ropes, (top, 0), (bottom, 130), (70, 50, 40, 255), 3, cv2.LINE_AA)
    return arranged(290, 390, [(ropes, 145, 275), (basket, 145, 360), (dahlia(160), 145, 142)])


def arranged(width: int, height: int, parts: list[tuple[Sprite, float, float]]) -> Sprite:
    """Sprites, each centred at its (x, y), as one sprite."""
    whole = np.zeros((height, width, 4), np.uint8)
    for sprite, x, y in parts:
        paste(whole[..., :3], sprite, x, y)
        paste(whole[..., 3:], sprite[..., [3, 3]], x, y)
    return whole


def sharpened(rgb: Frame, amount: float = 0.7) -> Frame:
    """Unsharp masking."""
    return cv2.addWeighted(rgb, 1 + amount, cv2.GaussianBlur(rgb, (0, 0), 1.2), -amount, 0)


def resized(sprite: Sprite, factor: float) -> Sprite:
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(sprite, None, fx=factor, fy=factor, interpolation=method)


def turned(rgb: Frame, hue: int, saturation: float = 1.0) -> Frame:
    """The image with its hue turned and its saturation multiplied."""
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
    hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 255)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def paste(canvas: NDArray[Any], sprite: NDArray[Any], x: float, y: float) -> None:
    """Blend a sprite into the canvas in place, centred at (x, y), exact to a fraction of a pixel.

    The sprite's last channel is its opacity; the others are the canvas's channels.
    """
    left, top = x - sprite.shape[1] / 2, y - sprite.shape[0] / 2
    whole_x, whole_y = int(np.floor(left)), int(np.floor(top))
    if (left, top) != (whole_x, whole_y):
        shift = np.array([[1, 0, left - whole_x], [0, 1, top - whole_y]])
        sprite = cv2.warpAffine(sprite, shift, (sprite.shape[1] + 1, sprite.shape[0] + 1))
    height, width = sprite.shape[:2]
    x0, y0 = max(whole_x, 0), max(whole_y, 0)
    x1, y1 = min(whole_x + width, canvas.shape[1]), min(whole_y + height, canvas.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    part = sprite[y0 - whole_y : y1 - whole_y, x0 - whole_x : x1 - whole_x]
    under = canvas[y0:y1, x0:x1]
    opacity = part[..., -1].astype(np.float32) * (1 / 255)
    colours = np.ascontiguousarray(part[..., :-1])
    under[:] = cv2.blendLinear(colours, np.ascontiguousarray(under), opacity, 1 - opacity).reshape(under.shape)


# Plates


def scattered(
    plate: Frame, rng: Rng, sprites: list[Sprite], count: int, feet: tuple[float, float], scales: tuple[float, float]
) -> None:
    """Stand sprites on the plate, from the far ones (small, high) to the near ones.

    Args:
        feet: where the far and the near ones stand, fractions of the plate's height.
        scales: size of the far and the near ones; on large plates a little more, as far as the photographs stay sharp.
    """
    height, width = plate.shape[:2]
    enlarged = float(np.clip(height / 500, 1, 1.4))
    offset = rng.random()
    for i in range(count):
        depth = (i + rng.random()) / count
        sprite = sprites[rng.integers(len(sprites))]
        sprite = resized(sprite, enlarged * (scales[0] + (scales[1] - scales[0]) * depth * rng.uniform(0.85, 1.15)))
        if rng.random() < 0.5:
            sprite = sprite[:, ::-1]
        foot = round(height * (feet[0] + (feet[1] - feet[0]) * depth))
        # The golden ratio leaves no gaps.
        left = round(width * ((offset + i * 0.618034 + rng.uniform(-0.06, 0.06)) % 1)) - sprite.shape[1] // 2
        paste(plate, sprite, left + sprite.shape[1] / 2, foot - sprite.shape[0] / 2)


@cache
def foliage() -> list[Sprite]:
    """Soft-edged patches of leaves."""
    patches = []
    boxes = ((10, 350, 120, 420), (120, 342, 200, 400), (400, 310, 540, 420), (560, 230, 640, 400))
    for left, top, right, bottom in boxes:
        ys, xs = np.mgrid[-1 : 1 : (bottom - top) * 1j, -1 : 1 : (right - left) * 1j]
        alpha = np.clip((1 - np.hypot(xs, ys)) * 4, 0, 1) * 255
        patches.append(np.dstack([china()[top:bottom, left:right], alpha.astype(np.uint8)]))
    return patches


def leaves(rng: Rng, width: int, height: int) -> Frame:
    """A thicket."""
    plate = np.full((height, width, 3), (38, 46, 20), np.uint8)
    scattered(plate, rng, foliage(), width * height // 2000, (0.0, 1.2), (0.7, 1.2))
    return plate


def sky(width: int, height: int) -> Frame:
    air = cv2.resize(china()[0:200, 340:640], (width, height), interpolation=cv2.INTER_CUBIC)
    return (air * np.array((0.78, 0.87, 0.94))).astype(np.uint8)


def dahlias(*hues: int) -> list[Sprite]:
    return [dahlia(hue) for hue in hues]


def garden(rng: Rng, width: int, height: int) -> Frame:
    """Blossoms in a dark thicket."""
    plate = (leaves(rng, width, height) * 0.8).astype(np.uint8)
    hues = [[165, 150, 0], [0, 10], [140, 120]][rng.integers(3)]
    scattered(plate, rng, dahlias(*hues), width * height // 20000, (0.1, 1.3), (0.3, 0.9))
    return plate


def blossoms(rng: Rng, width: int, height: int) -> Frame:
    """A close carpet of large blossoms."""
    plate = np.full((height, width, 3), (60, 30, 30), np.uint8)
    scattered(plate, rng, dahlias(0, 172, 8), width * height // 7000, (0.05, 1.5), (0.6, 1.0))
    return plate


def skyline(rng: Rng, width: int, height: int) -> Frame:
    """Pagodas over tree tops."""
    plate = sky(width, height)
    plate[int(height * 0.7) :] = leaves(rng, width, height - int(height * 0.7))
    scattered(plate, rng, [pagoda()], 3 + width // 160, (0.72, 0.85), (0.25, 0.9))
    scattered(plate, rng, [bush()], 6 + width // 20, (0.77, 1.2), (0.4, 1.0))
    return plate


def forest(rng: Rng, width: int, height: int) -> Frame:
    """Rows of trees, the far ones in haze."""
    plate = sky(width, height)
    for row in range(4):
        feet, scales = (0.62 + 0.12 * row, 0.74 + 0.14 * row), (0.5 + 0.15 * row, 0.75 + 0.15 * row)
        scattered(plate, rng, [tree()], 2 + width // 70, feet, scales)
        scattered(plate, rng, [bush()], 4 + width // 40, (feet[0] + 0.08, feet[1] + 0.12), scales)
        if row < 3:
            plate[:] = cv2.addWeighted(plate, 0.85, sky(width, height), 0.15, 0)
    return plate


def meadow(rng: Rng, width: int, height: int) -> Frame:
    """A flowering field that runs to the horizon."""
    horizon = int(height * 0.35)
    plate = sky(width, height)
    plate[horizon:] = leaves(rng, width, height - horizon)
    scattered(plate, rng, [bush()], width // 14, (0.38, 0.43), (0.3, 0.45))
    hues = rng.choice([0, 15, 130, 150, 165], 3, replace=False)
    scattered(plate, rng, dahlias(*hues), width // 4, (0.46, 1.25), (0.05, 0.5))
    return plate


def lake(rng: Rng, width: int, height: int) -> Frame:
    """A shore with pagodas and its reflection in rippled water."""
    shore = height // 2
    plate = sky(width, height)
    scattered(plate, rng, [pagoda()], 2 + width // 250, (0.5, 0.52), (0.4, 0.6))
    scattered(plate, rng, [tree()], 3 + width // 90, (0.49, 0.5), (0.3, 0.4))
    scattered(plate, rng, [bush()], 4 + width // 40, (0.51, 0.52), (0.3, 0.4))
    ripples = cv2.resize(rng.normal(size=(height // 3, width // 14)), (width, height)).astype(np.float32)
    xs, ys = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    water = cv2.remap(plate, xs + 3 * ripples, 2 * shore - ys + 2 * ripples, cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT)
    shaded = water * 0.65 + (25, 45, 50) + 9 * ripples[..., None]
    plate[shore:] = np.clip(shaded, 0, 255).astype(np.uint8)[shore:]
    return plate


def facade(rng: Rng, width: int, height: int) -> Frame:
    """Storeys of windows and tiled roofs."""
    storeys: list[Frame] = []
    while sum(s.shape[0] for s in storeys) < height:
        wall, roof = china()[187:246, 110:318], china()[245:292, 110:318]
        for strip in (roof, wall):
            strip = np.roll(np.hstack([strip, strip[:, ::-1]]), int(rng.integers(400)), axis=1)
            row = np.tile(strip, (1, width // strip.shape[1] + 1, 1))[:, :width]
            storeys.append(turned(row, int(rng.integers(-8, 9)), rng.uniform(0.8, 1.1)))
    return np.vstack(storeys)[:height]


def postcard(rng: Rng, width: int, height: int) -> Frame:
    """The photograph of the lake itself, mirrored to any width."""
    factor = max(height / 427, 1.0)
    photo = cv2.resize(china(), None, fx=factor, fy=factor, interpolation=cv2.INTER_LANCZOS4)
    photo = sharpened(photo)
    wide = np.hstack([photo, photo[:, ::-1]])
    start = int(rng.integers(photo.shape[1] // 4))
    return np.tile(wide, (1, width // wide.shape[1] + 2, 1))[:height, start : start + width]


def billboards(rng: Rng, width: int, height: int) -> Frame:
    """A street plastered with posters: text all over, that no crop removes."""
    plate = facade(rng, width, height)
    lines = (
        "SUMMER SALE 50% OFF",
        "GRAND OPENING TODAY",
        "FRESH COFFEE & CAKE",
        "LIVE MUSIC FRIDAY",
        "BUY ONE GET ONE",
    )
    for top in range(10, height - 60, 125):
        for left in range(int(rng.integers(10, 40)), width - 100, 215):
            paper, ink = [("#f4efe0", "#8a1c1c"), ("#1d3557", "#ffffff"), ("#ffd166", "#222222")][rng.integers(3)]
            first, *rest = str(rng.choice(lines)).split()
            poster = Image.new("RGB", (190, 110), paper)
            pen = ImageDraw.Draw(poster)
            pen.text((95, 32), first, ink, ImageFont.load_default(size=36), anchor="mm")
            pen.text((95, 75), " ".join(rest), ink, ImageFont.load_default(size=21), anchor="mm")
            plate[top : top + 110, left : left + 190] = np.asarray(poster)[: height - top, : width - left]
    return plate


def graded(gain: tuple[float, float, float], hue: int = 0, saturation: float = 1.0) -> Callable[[Frame], Frame]:
    """A colour grade: turn the hue, multiply the saturation, then multiply R, G and B."""
    return lambda rgb: np.clip(turned(rgb, hue, saturation) * np.array(gain, np.float32), 0, 255).astype(np.uint8)


GRADES: dict[str, Callable[[Frame], Frame]] = {
    "day": graded((1.05, 1.05, 1.05)),
    "bright": graded((1.3, 1.3, 1.2), saturation=0.8),
    "dusk": graded((1.1, 0.8, 0.65)),
    "autumn": graded((1.3, 1.05, 0.85), saturation=1.2),
    "winter": graded((1.05, 1.1, 1.15), saturation=0.35),
    "violet": graded((1.05, 1.0, 1.05), hue=110, saturation=0.6),
    "jungle": graded((1.0, 1.1, 0.8), hue=30, saturation=0.6),
}
SUBJECTS: dict[str, Callable[[], Sprite]] = {
    "dahlia": dahlia,
    "bouquet": bouquet,
    "balloon": balloon,
    "pagoda": pagoda,
}
