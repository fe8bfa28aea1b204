"""Ctrl-C while llama.cpp computes: Python's own handler would wait until the computation is over."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .engine import Cancelled, Engine


@contextmanager
def interruptible(engine: Engine) -> Iterator[None]:
    """Let Ctrl-C stop what the engine computes inside the block, and then raise KeyboardInterrupt as ever.

    Inside a callback that llama.cpp calls, Python would print a KeyboardInterrupt and go on.
    """
    pressed = threading.Event()

    def stop() -> None:
        pressed.set()
        engine.cancel()

    with on_interrupt(stop):
        try:
            yield
        except Cancelled:
            if not pressed.is_set():
                raise
    if pressed.is_set():
        raise KeyboardInterrupt


@contextmanager
def on_interrupt(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` at once when SIGINT comes inside the block, from another thread, instead of KeyboardInterrupt.

    The interpreter's C handler writes to a socket even while the main thread is inside a C call; a thread waits
    at its other end. Outside the main thread, where no signals arrive, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(ours, act), daemon=True)
    watcher.start()
    # A handler is only ever in place with its socket: between the two, Ctrl-C would be lost.
    old_fd = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        old_handler: Any = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, old_handler)
    finally:
        signal.set_wakeup_fd(old_fd)
        theirs.close()
        watcher.join()
        ours.close()


def _watch(signals: socket.socket, act: Callable[[], None]) -> None:
    """Read signal numbers until the other end closes."""
    while received := signals.recv(64):
        if signal.SIGINT in received:
            act()
