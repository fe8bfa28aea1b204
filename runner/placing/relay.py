"""Bytes from one TCP address to another, in threads: llama.cpp's RPC speaks IPv4 alone, and this lends it IPv6."""

import contextlib
import socket
import threading
from collections.abc import Callable

PIECE = 1 << 18


def relay(listener: socket.socket, connect: Callable[[], socket.socket]) -> None:
    """Answer each connection of a listening socket by one that `connect` makes, until the process ends."""
    threading.Thread(target=_accept, args=(listener, connect), daemon=True).start()


def _accept(listener: socket.socket, connect: Callable[[], socket.socket]) -> None:
    while True:
        try:
            near, _ = listener.accept()
        except OSError:
            return
        try:
            far = connect()
        except OSError:
            near.close()
            continue
        for sides in ((near, far), (far, near)):
            sides[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_pump, args=sides, daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Send on what comes until the source ends; the other side then hears of it."""
    piece = memoryview(bytearray(PIECE))
    with contextlib.suppress(OSError):
        while n_bytes := source.recv_into(piece):
            target.sendall(piece[:n_bytes])
    for side in (source, target):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)
