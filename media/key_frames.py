"""Where to begin decoding, so that the picture of a given time comes out, and right.

A search in a container may end anywhere: in a group of pictures that begins later, at a packet that is no key frame, or
far too early. Its packets tell, so nothing is decoded until the right key frame is found.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any

from media.promise import Promise

SAME_S = 1e-3  # times that differ by less are the same: some containers, and some tables, have milliseconds
_GROUP_BYTES = 1 << 26  # that are held while a later key frame is looked for


@dataclass(frozen=True)
class Group:
    """The packets from a key frame on. What is shown before ``key_s`` may refer to packets that are not among them."""

    key_s: float
    packets: Iterator[Any]


def group_at(packets: Iterator[Any], from_s: float, base: Fraction, promise: Promise) -> Group | None:
    """The packets from the last key frame on that is shown at ``from_s`` or earlier; None where there is none.

    Args:
        packets: of one stream, in the order of the file, from somewhere on.
        base: seconds of a unit of their time stamps.
        promise: what is known of their container.
    """
    limit_s = from_s + SAME_S
    group: list[Any] = []
    found_s, held = 0.0, 0
    for number, packet in enumerate(packets):
        key_s = _key_time(packet, number, base, promise)
        if key_s is not None and key_s <= limit_s:
            group, held, found_s = [packet], packet.size, key_s
        elif group:
            group.append(packet)
            held += packet.size
        if packet.dts is None and packet.size and not promise.presented:
            group = []  # its picture would take the time of the next one
        later = packet.dts is not None and packet.dts * base > limit_s
        if later or (key_s is not None and key_s > limit_s) or held > _GROUP_BYTES:
            break
    return Group(found_s, chain(group, packets)) if group else None


def _key_time(packet: Any, number: int, base: Fraction, promise: Promise) -> float | None:
    """When the picture of a packet is shown, if it is a key frame with a stamp of its own; else None.

    A program stream has a stamp for a block of bytes, not for each picture: those without are counted on from the one
    before, which after a search, ``number`` packets ago, is one of which only the end was read.
    """
    stamp = packet.pts if promise.presented else packet.dts
    if not packet.is_keyframe or stamp is None or (promise.in_blocks and (not number or packet.pos is None)):
        return None
    return float(stamp * base)
