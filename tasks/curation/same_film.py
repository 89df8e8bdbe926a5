"""How alike two signatures are, laid over each other in space and time.

A copy may be cropped, in other light, trimmed and encoded anew: so films are compared in local contrast, over all crops
of up to 20 % and all shifts that trimming may have caused, first coarsely and exhaustively, then exactly. What is left
to tell films apart is what copying leaves alone: what is where in the picture, and how it moves.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from tasks.curation.embed import RATE, SIDE, STRETCH, Film

Films = NDArray[np.float32]  # [T, H, W], of whatever has been made of luma

COARSE = 16  # side of the films that the first, exhaustive search compares, pixels
# What a copy may show of the original along one axis, (start, length) as fractions: crops of 10 and 20 %, any side.
WINDOWS = [(0.0, 1.0), (0.0, 0.9), (0.05, 0.9), (0.1, 0.9), (0.0, 0.8), (0.1, 0.8), (0.2, 0.8)]
PARTS = 4  # along a side
NOISE = 4.0  # variance in grey levels that compression leaves: less than this is no evidence
FLAT_NOISE = 0.01  # the same in local contrast
HOPELESS = 0.35  # at coarse sight; duplicates reach twice that
EVIDENCE = 4.0  # least contrast, in grey levels, of a stretch that can be told from another


def local_contrast(film: Film) -> Films:
    """The film [T, H, W] with local mean taken off and local contrast made even: what light and colour leave alone."""
    planes = film.astype(np.float32)
    out = np.empty_like(planes)
    for plane, normal in zip(planes, out, strict=True):
        plane = cv2.GaussianBlur(plane, (0, 0), 1.0, borderType=cv2.BORDER_REFLECT)
        detail = plane - cv2.GaussianBlur(plane, (0, 0), 3.0, borderType=cv2.BORDER_REFLECT)
        power = cv2.GaussianBlur(detail * detail, (0, 0), 3.0, borderType=cv2.BORDER_REFLECT)
        normal[:] = detail / np.sqrt(power + 36.0)
    return out


def sampling(start: float, length: float, count: int) -> NDArray[np.float32]:
    """Linear interpolation [count, SIDE] of ``count`` points across the part (start, length) of an axis."""
    x = np.clip((start + length * (np.arange(count) + 0.5) / count) * SIDE - 0.5, 0, SIDE - 1)
    left = np.minimum(x.astype(int), SIDE - 2)
    weights = np.zeros((count, SIDE), np.float32)
    weights[np.arange(count), left] = left + 1 - x
    weights[np.arange(count), left + 1] += (x - left).astype(np.float32)
    return weights


_COARSE = np.stack([sampling(*w, 2 * COARSE).reshape(COARSE, 2, SIDE).mean(axis=1) for w in WINDOWS])
# A crop is the same along both axes, except where borders hide it along one.
_SEEDS = [(y, x) for y, v in enumerate(WINDOWS) for x, w in enumerate(WINDOWS) if v[1] == w[1] or 1.0 in (v[1], w[1])]


def half_steps(film: Films) -> Films:
    """[T, ...] to [2T - 1, ...]: with the mean of neighbours in between."""
    out = np.empty((2 * len(film) - 1, *film.shape[1:]), np.float32)
    out[::2] = film
    out[1::2] = (film[1:] + film[:-1]) / 2
    return out


def meeting(shift: int, outer: int, inner: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the frames that coincide: into the half steps of ``outer`` frames, and into ``inner`` frames."""
    j = np.arange(inner)
    i = shift + 2 * j
    inside = (i >= 0) & (i <= 2 * (outer - 1))
    return i[inside], j[inside]


def shifts_of(outer: int, inner: int, max_shift: int) -> list[int]:
    """The shifts, in half samples, at which at least half of the longer film coincides with the other."""
    least = (max(outer, inner) + 1) // 2
    return [s for s in range(-max_shift, max_shift + 1) if len(meeting(s, outer, inner)[1]) >= least]


def correlation(a: Films, b: Films, noise: float = 0.0) -> float:
    """Normalised correlation of two arrays; where both vary less than ``noise`` (a variance), they agree."""
    a, b = a - a.mean(), b - b.mean()
    return float(((a * b).mean() + noise) / np.sqrt(((a * a).mean() + noise) * ((b * b).mean() + noise) + 1e-12))


def warp(film: Films, box: NDArray[np.float64]) -> Films:
    """The part ``box`` (top, height, left, width, as fractions) of a film, at SIDE x SIDE again."""
    rows, columns = sampling(box[0], box[1], SIDE), sampling(box[2], box[3], SIDE)
    return np.asarray(rows @ film @ columns.T, np.float32)


def seed(outer: Films, inner: Films, max_shift: int) -> tuple[float, int, NDArray[np.float64]]:
    """The correlation, shift and box at which ``inner`` [T, SIDE, SIDE] is most like ``outer``, over all WINDOWS."""
    b = (_COARSE[0] @ inner @ _COARSE[0].T).reshape(len(inner), -1)
    rows = [w @ outer for w in _COARSE]
    a = np.stack([half_steps((rows[y] @ _COARSE[x].T).reshape(len(outer), -1)) for y, x in _SEEDS])
    product, a_power, b_power = a @ b.T, (a * a).sum(axis=2), (b * b).sum(axis=1)
    best = (-2.0, 0, 0)
    for shift in shifts_of(len(outer), len(inner), max_shift):
        i, j = meeting(shift, len(outer), len(inner))
        noise = FLAT_NOISE * len(j) * COARSE**2
        power = (a_power[:, i].sum(axis=1) + noise) * (b_power[j].sum() + noise)
        scores = (product[:, i, j].sum(axis=1) + noise) / np.sqrt(power)
        k = int(scores.argmax())
        best = max(best, (float(scores[k]), shift, k))
    y, x = _SEEDS[best[2]]
    return best[0], best[1], np.array([*WINDOWS[y], *WINDOWS[x]])


def refine(outer: Films, inner: Films, box: NDArray[np.float64], steps: int = 5) -> NDArray[np.float64]:
    """The box at which frames ``outer`` [T, SIDE, SIDE] correlate best with ``inner``, by Gauss-Newton from ``box``.

    This is image alignment after Lucas and Kanade, on normalised films as in ECC (Evangelidis and Psarakis, 2008).
    """

    def unit(film: Films) -> Films:
        film = film - film.mean()
        return (film / (np.linalg.norm(film) + 1e-6)).ravel()

    some = np.unique(np.linspace(0, len(outer) - 1, 10).astype(int))
    outer, goal = outer[some], unit(inner[some])
    step = 0.5 / SIDE
    best, best_score = box, -2.0
    for _ in range(steps):
        seen = unit(warp(outer, box))
        score = float(seen @ goal)
        if score < best_score + 1e-4:
            break
        best, best_score = box, score
        slopes = np.stack([(unit(warp(outer, box + step * e)) - seen) / step for e in np.eye(4)], axis=1)
        box = box + np.linalg.solve(slopes.T @ slopes + 1e-4 * np.eye(4), slopes.T @ (goal - seen)).clip(-0.05, 0.05)
        box[1::2] = box[1::2].clip(0.7, 1.0)
        box[::2] = box[::2].clip(0.0, 1 - box[1::2])
    return best


def parts_alike(a: Films, b: Films) -> float:
    """Second lowest of the correlations of two pictures' 16 parts, [T, SIDE, SIDE] each; empty parts agree.

    Over the whole, what two slides of one template share would outweigh how they differ. The lowest is left to chance:
    a hand before the lens, a logo.
    """
    side = SIDE // PARTS
    a, b = (film.reshape(-1, PARTS, side, PARTS, side) for film in (a, b))
    a, b = (film - film.mean(axis=(0, 2, 4), keepdims=True) for film in (a, b))
    cov, a_power, b_power = ((x * y).mean(axis=(0, 2, 4)) + FLAT_NOISE for x, y in ((a, b), (a, a), (b, b)))
    return float(np.sort((cov / np.sqrt(a_power * b_power)).ravel())[1])


def agreement(pictures: tuple[Films, Films], lights: tuple[Films, Films]) -> float:
    """The least of two likenesses of films that coincide: of their pictures, and of what changes through time."""
    noise = NOISE / max(float(lights[0].std() * lights[1].std()), 1.0)
    moving = [(film - film.mean(axis=0)) / max(film.std(), 1.0) for film in lights]
    return min(parts_alike(*pictures), correlation(moving[0], moving[1], noise))


def overlay(outer: Film, inner: Film, max_shift: int) -> float:
    """How alike two films [T, SIDE, SIDE] are where, at best, one is a crop of the other; -1 to 1.

    The least of two correlations: of the pictures (local contrast), which tells scenes apart, and of what moves in
    them, which tells two takes of one scene apart. Frames meet half a sample or better; a frame between two samples
    is their mean.
    """
    picture, goal = local_contrast(outer), local_contrast(inner)
    forward, backward = seed(picture, goal, max_shift), seed(goal, picture, max_shift)
    if backward[0] > forward[0]:
        outer, inner, picture, goal = inner, outer, goal, picture
    score, shift, box = max(forward, backward, key=lambda found: found[0])
    if score < HOPELESS:
        return score
    picture, light, light_goal = half_steps(picture), half_steps(outer.astype(np.float32)), inner.astype(np.float32)
    best = -1.0
    for _ in range(2):  # the shift of a quiet film shows only once the box is right, and the other way round
        i, j = meeting(shift, len(outer), len(inner))
        box = refine(picture[i], goal[j], box)
        picture_seen, light_seen = warp(picture, box), warp(light, box)
        before = shift
        for other in shifts_of(len(outer), len(inner), max_shift):
            i, j = meeting(other, len(outer), len(inner))
            alike = agreement((picture_seen[i], goal[j]), (light_seen[i], light_goal[j]))
            if alike > best:
                best, shift = alike, other
        if shift == before:
            break
    return best


def similarity(a: Film, b: Film, trim_s: float) -> float:
    """How much two signatures are of one film, -1 to 1; one may lack ``trim_s`` seconds of the other.

    Long films are compared in their first, middle and last stretch; the least alike counts.
    """
    max_shift = int(2 * RATE * trim_s)

    def stretches(film: Film) -> list[Film]:
        middle = (len(film) - STRETCH) // 2
        return [film[:STRETCH], film[max(0, middle) :][:STRETCH], film[-STRETCH:]]

    pairs = list(zip(stretches(a), stretches(b), strict=True))
    if max(len(a), len(b)) <= STRETCH:
        pairs = pairs[:1]
    telling = [(x, y) for x, y in pairs if max(x.std(), y.std()) >= EVIDENCE]
    return min((overlay(x, y, max_shift) for x, y in telling), default=0.0)
