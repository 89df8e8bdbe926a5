"""The eight ways in which a stored picture lies, and how each is turned upright.

Cameras store pictures as the sensor saw them and write down how they are to be shown: images in the EXIF tag
Orientation (EXIF 2.32, tag 0x0112), videos in the display matrix of the track (ISO/IEC 14496-12, ``tkhd``) or in the
display orientation message of the stream (ITU-T H.264 and H.265, annex D).
"""

from dataclasses import dataclass
from typing import Any, cast

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from numpy.typing import NDArray


@dataclass(frozen=True)
class Orientation:
    """How a stored picture becomes an upright one: transposed first, then mirrored."""

    transposed: bool = False
    mirrored_x: bool = False
    mirrored_y: bool = False

    @classmethod
    def of_exif(cls, tag: int) -> "Orientation":
        """The orientation that an EXIF tag of 1 to 8 names; any other number is no orientation and means upright."""
        return _EXIF.get(tag, cls())

    @classmethod
    def of_matrix(cls, matrix: bytes) -> "Orientation":
        """The orientation nearest to a display matrix: nine int32 ``a b u c d v x y w`` in the machine's order.

        A stored point (p, q) is shown at (a p + c q + x, b p + d q + y), both axes from the upper left corner. Scale
        and place say nothing of the orientation, and angles between the quarter turns go to the nearest.
        """
        a, b, _, c, d = (int(number) for number in np.frombuffer(matrix, np.int32)[:5])
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    @classmethod
    def of_frame(cls, frame: av.VideoFrame) -> "Orientation":
        """The orientation in which a player shows a decoded frame."""
        side_data: Any = frame.side_data  # PyAV's stubs take it for a mapping of names
        matrices = [bytes(data) for data in side_data if data.type == SideDataType.DISPLAYMATRIX]
        return cls.of_matrix(matrices[0]) if matrices else cls()

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height when upright of a picture that is stored with ``width`` and ``height``."""
        return (height, width) if self.transposed else (width, height)

    def upright(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The stored picture [h, w, ...], upright; a view where it lies upright already."""
        if self.transposed:
            picture = picture.swapaxes(0, 1)
        turned = picture[:: -1 if self.mirrored_y else 1, :: -1 if self.mirrored_x else 1]
        return np.ascontiguousarray(turned)


_EXIF = {
    1: Orientation(False, False, False),
    2: Orientation(False, True, False),
    3: Orientation(False, True, True),
    4: Orientation(False, False, True),
    5: Orientation(True, False, False),
    6: Orientation(True, True, False),
    7: Orientation(True, True, True),
    8: Orientation(True, False, True),
}


def _unnamed(kind: type[SideDataType], value: object) -> SideDataType:
    """A member for a kind of side data that FFmpeg knows and PyAV has no name for."""
    member: Any = object.__new__(kind)
    member._name_, member._value_ = f"UNNAMED_{value}", value
    return cast(SideDataType, member)


# PyAV 18.1 lists none of a frame's side data where one kind is newer than its own list: EXIF in motion JPEG, the view
# of stereo video. An enum asks this hook before it refuses a number.
SideDataType._missing_ = classmethod(_unnamed)  # type: ignore[assignment, method-assign]
