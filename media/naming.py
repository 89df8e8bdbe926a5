"""How errors name a few of many things."""

from collections.abc import Sequence

NAMED = 3


def first_of(names: Sequence[str], shown: int = NAMED) -> str:
    """The first ``shown`` names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
