"""The one door to llama.cpp: imports llama-cpp-python late, finds its ggml libraries, and keeps its log.

`LLAMA_CPP_LIB_PATH` names a folder with another build of the libraries (CUDA, Vulkan, RPC, ...).
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from .errors import EngineError

# A function that tells that a library is there; a backend has ggml_backend_NAME_reg.
MARKERS = {"ggml": "ggml_backend_reg_count", "ggml-base": "ggml_backend_dev_init"}


@cache
def llama() -> Any:
    """Import llama-cpp-python's low-level bindings (`llama_cpp.llama_cpp`) once; llama.cpp's log is silent.

    Raises EngineError when the package or its library cannot be loaded.
    """
    bindings = _bindings()
    for act in _once_loaded:
        act()
    return bindings


def when_loaded(act: Callable[[], object]) -> None:
    """Call `act` once llama.cpp is loaded, before it is used; for the program that owns the process (see cli/)."""
    _once_loaded.append(act)


_once_loaded: list[Callable[[], object]] = []


@cache
def _bindings() -> Any:
    try:
        from llama_cpp import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            f"llama.cpp cannot be loaded: {error}; install llama-cpp-python, or check LLAMA_CPP_LIB_PATH"
        ) from error
    bindings: Any = llama_cpp
    bindings.llama_log_set(_log_callback(bindings), None)
    bindings.llama_backend_init()
    return bindings


def library_folder() -> Path:
    """Return the folder that holds libllama and the libggml-* libraries."""
    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    return Path(override) if override else Path(str(_bindings().__file__)).parent / "lib"


@cache
def ggml(name: str) -> ctypes.CDLL:
    """Return one of llama.cpp's ggml libraries: "ggml", "ggml-base", "ggml-cpu", "ggml-rpc", ...

    It is the one that libllama itself uses: wheels store a library two or three times (libggml.so,
    libggml.so.0), and each file that is loaded is a ggml of its own, whose devices are unknown to the others.
    So what libllama is linked with is looked up through libllama, and only what is not (every library on
    Windows, backends that are loaded at run time) by its file. Raises EngineError when this build does not have it.
    """
    bindings = _bindings()
    if sys.platform != "win32":
        linked = ctypes.CDLL(name, handle=bindings._lib._handle)
        if hasattr(linked, MARKERS.get(name, f"ggml_backend_{name.removeprefix('ggml-')}_reg")):
            return linked
    for prefix, suffix in (("lib", ".so"), ("lib", ".dylib"), ("", ".dll"), ("lib", ".dll")):
        path = library_folder() / f"{prefix}{name}{suffix}"
        if path.exists():
            options: dict[str, Any] = {"winmode": 0} if sys.platform == "win32" else {}
            return ctypes.CDLL(str(path), **options)
    raise EngineError(f"this build of llama.cpp has no {name} library in {library_folder()}")


def c_text(text: str, what: str) -> bytes:
    """Return a text as llama.cpp's functions take it, in UTF-8; raises EngineError for one that cannot be that.

    Arguments that are no UTF-8 come as surrogates, and a zero byte would end the text. Paths: use os.fsencode.
    """
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise EngineError(f"{what} is not UTF-8 text: {shortened(text)!a}") from None
    if b"\0" in encoded:
        raise EngineError(f"{what} holds a zero byte: {shortened(text)!a}")
    return encoded


def shortened(text: str) -> str:
    """Return the beginning of a text, for messages."""
    return text if len(text) <= 60 else text[:57] + "..."


class _Listeners(threading.local):
    """Who listens in this thread: llama.cpp has one log for the process, and calls it from the thread that works."""

    def __init__(self) -> None:
        self.here: list[Callable[[int, str], None]] = []


_listeners = _Listeners()


@cache
def _log_callback(bindings: Any) -> Any:
    """Return the C callback that hands llama.cpp's log to the listeners; cached so that it stays alive."""

    def on_log(level: int, text: bytes | None, _: Any) -> None:
        if here := tuple(_listeners.here):
            line = (text or b"").decode("utf-8", "replace")
            for listener in here:
                listener(level, line)

    return bindings.llama_log_callback(on_log)


class listening:
    """Call `listener(level, text)` for what llama.cpp logs in this thread inside the block (3 warns, 4 fails).

    Keep the block around one call of llama.cpp, so that models of one process do not hear each other. What a thread
    of llama.cpp's own logs is heard by nobody. A class, since a generator's costs 30 us a token behind a decode,
    when nothing is in the processor's caches.
    """

    __slots__ = ("_here", "_listener")

    def __init__(self, listener: Callable[[int, str], None]) -> None:
        llama()
        self._here = _listeners.here
        self._listener = listener

    def __enter__(self) -> None:
        self._here.append(self._listener)

    def __exit__(self, *_: object) -> None:
        self._here.remove(self._listener)
