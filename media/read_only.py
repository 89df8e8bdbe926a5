"""What any file to read from has beside its position and its bytes."""

from io import RawIOBase
from typing import Any


class ReadOnlyFile(RawIOBase):
    """A binary file to read from that can seek. A subclass has ``read``, which gives all that is asked for and there,
    ``seek`` and ``tell``.
    """

    def readall(self) -> bytes:
        data: bytes = self.read()
        return data

    def readinto(self, buffer: Any) -> int:
        data: bytes = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
