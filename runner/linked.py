"""Functions of the ggml libraries that libllama itself uses, with their C signatures."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from ..formats.errors import EngineError
from ..formats.llamacpp import ggml


@cache
def linked(name: str, library: str, arguments: Sequence[Any] = (), result: Any = None) -> Any:
    """Return the C function `name` of `library` ("ggml-base") with its signature.

    Raises EngineError when this build of llama.cpp does not have it.
    """
    try:
        # By index, because an attribute would be shared with whoever else sets a signature.
        function = ggml(library)[name]
    except AttributeError:
        raise EngineError(f"this build of llama.cpp has no {name}; install llama-cpp-python again") from None
    function.argtypes, function.restype = list(arguments), result
    return function
