"""What networks do to the connections of a wire: cut them, and lose packets."""

import ctypes
import socket
import struct
from contextlib import suppress

from tests.live.wire import Wire

# Of Linux; Python has no names for them.
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27


def cut(wire: Wire) -> None:
    """Break every connection: both ends see a reset, and what was on its way is lost."""
    sockets, wire.sockets = wire.sockets, []
    for connection in sockets:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            # Wakes the thread that reads from it.
            connection.shutdown(socket.SHUT_RD)
        connection.close()


def swallow(wire: Wire) -> None:
    """Lose each packet of the client on the connections there are, so that its kernel sends them again."""
    # A program for the kernel's packet filter that lets none pass: BPF_RET, 0.
    instructions = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
    program = struct.pack("HL", 1, ctypes.addressof(instructions))
    for client in wire.sockets[::2]:
        with suppress(OSError):
            client.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def heal(wire: Wire) -> None:
    """Lose no packets any more."""
    for client in wire.sockets[::2]:
        with suppress(OSError):
            client.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
