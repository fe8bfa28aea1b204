"""Functions of the ggml libraries that libllama itself uses.

Wheels store a library two or three times (libggml.so, libggml.so.0), and each file that is loaded is a ggml of its
own: a device registered in one is unknown to the other. A symbol looked up through libllama is the right one.
"""

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

from ..formats.errors import EngineError
from ..formats.llamacpp import ggml, llama


@cache
def linked(name: str, library: str, arguments: Sequence[Any] = (), result: Any = None) -> Any:
    """Return the C function `name` with its signature; `library` ("ggml-base") is where Windows has it.

    Raises EngineError when this build of llama.cpp does not have it.
    """
    function = None
    if sys.platform != "win32":
        function = _symbol(llama()._lib, name)
    if function is None:
        function = _symbol(ggml(library), name)
    if function is None:
        raise EngineError(f"this build of llama.cpp has no {name}; install llama-cpp-python again")
    function.argtypes, function.restype = list(arguments), result
    return function


def _symbol(library: ctypes.CDLL, name: str) -> Any:
    try:
        # by index, because an attribute would be shared with whoever else sets a signature
        return library[name]
    except AttributeError:
        return None
