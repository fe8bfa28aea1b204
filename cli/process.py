"""What only the owner of a process may set: how signals end it, and what it says when llama.cpp ends it."""

import contextlib
import ctypes
import os
import re
import signal
import sys
from functools import cache
from types import FrameType
from typing import Any

from ..formats.llamacpp import when_loaded

# from ggml/src/ggml-rpc/ggml-rpc.cpp: what ggml_abort is given when a connection breaks
LOST_CONNECTION = ("RPC server", "RPC handshake", "ggml-rpc")
# assertions of ggml that fail for lack of memory: ggml_init, ggml_aligned_malloc, pthread_create
NO_MEMORY_ASSERTED = re.compile(r"mem_buffer|alloc|memory|rc == 0")
NO_MEMORY = "there is not enough memory for this (see ulimit -v and moe-gguf fit)"
# what C++ calls the exceptions that llama.cpp does not catch
NO_THREADS = "the system gives it no more threads or memory (see ulimit -a)"
THROWN = {"St9bad_alloc": NO_MEMORY, "St12system_error": NO_THREADS}


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM or SIGHUP: cleaned up after as Ctrl-C is, and never taken for less."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


def own_process() -> None:
    """Let SIGTERM and a closed terminal end the process as cleanly as Ctrl-C, and explain what llama.cpp aborts on."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # one that is ignored stays so: nohup does that
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, terminate)
    # ggml would start a debugger to print where it was
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    when_loaded(explain_aborts)


def terminate(number: int, _: FrameType | None) -> None:
    """End what runs, as Ctrl-C would."""
    raise Terminated(number)


def ended_status(error: BaseException | None) -> int:
    """Return the status of a run that a signal ended: click and the writers wrap what the handler raised."""
    while error is not None:
        if status := getattr(error, "status", None):
            return status
        error = error.__cause__ or error.__context__
    return 130


def end_at_once(status: int, text: str = "") -> None:
    """End the process without the interpreter's farewell, which waits for threads and frees what they still use."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    if text:
        with contextlib.suppress(OSError):
            os.write(2, f"moe-gguf: {' '.join(text.split())}\n".encode())
    os._exit(status)


@cache
def explain_aborts() -> tuple[Any, ...]:
    """Make llama.cpp end the process with one line and status 1 where it would abort.

    None of its ways to do so returns to the caller, so they cannot become exceptions: a failed assertion
    (ggml_abort), a C++ exception that nobody catches (std::terminate), and whatever else calls abort().
    Returns the callbacks, which the cache keeps alive.
    """
    from ..runner.linked import linked

    on_abort = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(lambda message: end_at_once(1, reason(message or b"")))
    linked("ggml_set_abort_callback", "ggml-base", (ctypes.c_void_p,), ctypes.c_void_p)(on_abort)
    on_signal = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: end_at_once(1, "llama.cpp aborted; see above"))
    on_terminate = ctypes.CFUNCTYPE(None)(lambda: end_at_once(1, thrown()))
    if sys.platform != "win32":
        ctypes.CDLL(None).signal(signal.SIGABRT, on_signal)
        if library := runtime():
            library._ZSt13set_terminatePFvvE(on_terminate)
    return on_abort, on_signal, on_terminate


def reason(message: bytes) -> str:
    """Return one line for what ggml_abort was told."""
    from ..runner.placing.rpc import workers

    text = message.decode("utf-8", "replace").strip()
    if any(phrase in text for phrase in LOST_CONNECTION):
        names = ", ".join(workers()) or "a worker"
        return f"the connection to a worker was lost ({names}); start it again and repeat the command"
    if NO_MEMORY_ASSERTED.search(text):
        text = NO_MEMORY
    return f"llama.cpp cannot go on: {text}"


def thrown() -> str:
    """Return one line for the C++ exception that is in flight and that nobody catches."""
    library = runtime()
    if library is None:
        return "llama.cpp failed"
    current = library["__cxa_current_exception_type"]
    current.restype = ctypes.POINTER(ctypes.c_char_p * 2)  # std::type_info: its table of functions, its name
    kind = current()
    name = (kind.contents[1] or b"").decode() if kind else "nothing"
    return f"llama.cpp cannot go on: {THROWN.get(name, f'it threw {name}')}"


@cache
def runtime() -> Any:
    """Return the C++ library that llama.cpp uses, None where it is not found."""
    for name in ("libstdc++.so.6", "libc++.so.1", "libc++.1.dylib"):
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(name)
            if library._ZSt13set_terminatePFvvE and library["__cxa_current_exception_type"]:
                return library
    return None
