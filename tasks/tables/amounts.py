"""Amounts in words: bytes and seconds as people read them."""


def size(count: float) -> str:
    """Bytes in words: ``1.4 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds in words: ``4 min 10 s``, ``6 h 50 min``, ``3 d 4 h``."""
    whole = round(seconds)
    for large, small, unit, part in ((86_400, 3_600, "d", "h"), (3_600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= large:
            first, rest = divmod(whole, large)
            return f"{first} {unit} {rest // small} {part}" if rest // small else f"{first} {unit}"
    return f"{whole} s"
