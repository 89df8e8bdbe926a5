"""Whether two pictures are one view, seen by a camera that moved in between.

A pan over fine texture looks, in thumbnails, like a slow replacement of one picture by another. At full detail the two
cannot be mistaken: what the camera has moved over is still there. Few pairs of frames are ever asked about, so feature
matching (ORB, Rublee et al. 2011) with a homography, checked by the grey levels themselves, is cheap enough.
"""

import cv2
import numpy as np

from tasks.tables.picture import Image

FEATURES = 800
DISTINCT = 0.8  # Lowe's ratio: a match counts if the second best is clearly worse
REACH_PX = 4.0
INLIERS_MIN = 25
OVERLAP_MIN = 0.3  # of the frame: less leaves too little to compare
ALIKE_MIN = 0.75  # correlation of grey levels: measured, 0.97 and more in pans, 0.1 and less across transitions
MOVED_MIN = 0.01  # frame diagonals


def moved_view(before: Image, after: Image) -> bool:
    """Whether ``after`` shows what ``before`` does from a camera that moved; RGB uint8 of one size.

    False where the camera stood still: then nothing but a new picture explains what changed.
    """
    first, second = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (before, after))
    detector = cv2.ORB.create(FEATURES)
    (here, ours), (there, theirs) = (detector.detectAndCompute(grey, None) for grey in (first, second))
    if ours is None or theirs is None or min(len(here), len(there)) < INLIERS_MIN:
        return False
    nearest = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(ours, theirs, k=2)
    matches = [pair[0] for pair in nearest if len(pair) == 2 and pair[0].distance < DISTINCT * pair[1].distance]
    if len(matches) < INLIERS_MIN:
        return False
    start = np.array([here[match.queryIdx].pt for match in matches], np.float32)
    end = np.array([there[match.trainIdx].pt for match in matches], np.float32)
    transform, explained = cv2.findHomography(start, end, cv2.RANSAC, REACH_PX)
    if transform is None or np.count_nonzero(explained) < INLIERS_MIN:
        return False
    size = (first.shape[1], first.shape[0])
    moved = float(np.median(np.hypot(*(end - start)[explained.ravel() > 0].T)))
    shared = cv2.warpPerspective(np.full_like(first, 255), transform, size) == 255
    if moved < MOVED_MIN * np.hypot(*size) or shared.mean() < OVERLAP_MIN:
        return False
    warped = cv2.warpPerspective(first, transform, size)
    spread = warped[shared].std() * second[shared].std()
    return bool(spread > 0 and np.corrcoef(warped[shared], second[shared])[0, 1] >= ALIKE_MIN)
