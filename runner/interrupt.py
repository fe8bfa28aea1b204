"""Ctrl-C, and the signals that end a program, while llama.cpp works: Python's handlers would wait until it is over."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

from ..formats.errors import EngineError

# Ctrl-C, `kill`, a terminal that was closed (Windows has no such signal)
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Cancelled(EngineError):
    """The work was cancelled; the engine can go on."""


class Cancellable(Protocol):
    """What computes, and raises Cancelled after `cancel` was called: an Engine."""

    def cancel(self) -> None:
        """Stop; any thread may call this."""
        ...


@contextmanager
def interruptible(engine: Cancellable) -> Iterator[None]:
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
    """Call `act` at once when a signal of SIGNALS comes inside the block, from another thread.

    SIGINT has then done its work. The others end the program: their own handlers are called when the block is left.
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
        with _collected() as came:
            yield
    finally:
        signal.set_wakeup_fd(old_fd)
        theirs.close()
        watcher.join()
        ours.close()
    _raise_again(number for number in came if number != signal.SIGINT)


@contextmanager
def held_interrupts() -> Iterator[Callable[[], bool]]:
    """Hold the signals of SIGNALS back for as long as a C function runs that calls Python, where they would be lost.

    Yields a function that tells whether one came, for a callback that can end the work. When the block is left, by
    whatever way, what came takes effect. Outside the main thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: list[int] = []
    try:
        with _collected() as came:
            yield lambda: bool(came)
    finally:
        _raise_again(came)


@contextmanager
def _collected() -> Iterator[list[int]]:
    """Collect signals in a list instead of handling them; those that Python does not handle stay as they are."""
    came: list[int] = []
    before: dict[int, Any] = {}

    def collect(number: int, _: FrameType | None) -> None:
        came.append(number)

    try:
        for number in SIGNALS:
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, collect)
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_again(numbers: Any) -> None:
    """Give signals that were held back to the handlers that are in place now."""
    for number in tuple(numbers):
        signal.raise_signal(number)


def _watch(signals: socket.socket, act: Callable[[], None]) -> None:
    """Read signal numbers until the other end closes."""
    while received := signals.recv(64):
        if any(number in received for number in SIGNALS):
            act()
