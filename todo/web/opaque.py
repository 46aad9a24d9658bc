"""Opaque texts that clients send back: numbers, and a digest of what they belong to. Knows no resource."""

import base64
import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from typing import TypeVar

from todo.errors import InvalidInput

Read = TypeVar("Read")


class Opaque:
    """A kind of such texts, in URL-safe base64 (RFC 4648).

    The digest protects against mistakes, not forgery: a forged text shows users only their own rows.
    """

    def __init__(self, numbers: str, digest: int, message: str) -> None:
        """numbers: their format, as for struct. digest: its bytes. message: for a text that decode() refuses."""
        self._layout = struct.Struct(f">{numbers}{digest}s")
        self._digest = digest
        self._message = message

    def encode(self, belongs_to: Sequence[str | int | None], *numbers: int) -> str:
        """Return the text."""
        digest = hashlib.sha256(json.dumps(belongs_to).encode()).digest()[: self._digest]
        return base64.urlsafe_b64encode(self._layout.pack(*numbers, digest)).decode()

    def decode(self, belongs_to: Sequence[str | int | None], text: str, read: Callable[..., Read]) -> Read:
        """Return what `read` returns for the numbers. It raises ValueError or OverflowError for impossible ones.

        Raises InvalidInput also unless encode() made the text for the same.
        """
        try:
            *numbers, _ = self._layout.unpack(base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True))
            value = read(*numbers)
        except (ValueError, OverflowError, struct.error) as error:
            raise InvalidInput(self._message) from error
        if text != self.encode(belongs_to, *numbers):
            raise InvalidInput(self._message)
        return value
