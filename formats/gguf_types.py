"""Tensor types by their numbers in GGUF: what the gguf package lists, and what the llama.cpp here knows beyond it.

A file is as new as the llama.cpp that wrote it, and llama.cpp may be newer than the package.
"""

import ctypes
import os
from functools import cache
from tempfile import TemporaryDirectory

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from .errors import EngineError

# Numbers that were given up (ggml/include/ggml.h): the type's name, since when, and what took its place.
REMOVED = {
    4: ("Q4_2", "May 2023", "quantize the model again"),
    5: ("Q4_3", "May 2023", "quantize the model again"),
    31: ("Q4_0_4_4", "December 2024", "take the Q4_0 file: it is repacked for the processor when it is loaded"),
    32: ("Q4_0_4_8", "December 2024", "take the Q4_0 file: it is repacked for the processor when it is loaded"),
    33: ("Q4_0_8_8", "December 2024", "take the Q4_0 file: it is repacked for the processor when it is loaded"),
    36: ("IQ4_NL_4_4", "December 2024", "take the IQ4_NL file: it is repacked for the processor when it is loaded"),
    37: ("IQ4_NL_4_8", "December 2024", "take the IQ4_NL file: it is repacked for the processor when it is loaded"),
    38: ("IQ4_NL_8_8", "December 2024", "take the IQ4_NL file: it is repacked for the processor when it is loaded"),
}
# Rows of the file that asks llama.cpp: enough weights for blocks of any size that is a power of two.
PROBE_WEIGHTS = 2**16
PROBE_BYTES = PROBE_WEIGHTS * 8


class UnknownTypeError(ValueError):
    """No tensor type has this number, and what that means."""


def tensor_type(number: int) -> GGMLQuantizationType:
    """Return the tensor type of a number, from the package or from the llama.cpp that is loaded.

    Raises UnknownTypeError with a few words for a number that is none, or was one.
    """
    try:
        return GGMLQuantizationType(number)
    except ValueError:
        pass
    if number in REMOVED:
        name, since, instead = REMOVED[number]
        raise UnknownTypeError(f"{name}, a type that llama.cpp removed in {since}; {instead}")
    try:
        known = _engine_type(number)
    except (EngineError, OSError):
        known = None
    if known is None:
        raise UnknownTypeError(
            f"type {number}, which the llama.cpp here does not know; it is of a newer one (update llama-cpp-python) "
            "or of a fork such as ik_llama.cpp"
        )
    return _add(number, *known)


@cache
def _engine_type(number: int) -> tuple[str, int, int] | None:
    """Ask llama.cpp for a type's name, weights per block and bytes per block; None when it has no such type.

    ggml's functions read past their table for a number that is none, so a file of such a tensor is opened first.
    """
    from .gguf_fields import pack_string
    from .llamacpp import ggml, listening

    base = ggml("ggml-base")
    base.gguf_init_from_file.restype = ctypes.c_void_p
    base.gguf_init_from_file.argtypes = [ctypes.c_char_p, _InitParameters]
    base.gguf_free.argtypes = [ctypes.c_void_p]
    header = b"GGUF" + _packed(3, 4) + _packed(1, 8) + _packed(0, 8)
    header += pack_string("t") + _packed(1, 4) + _packed(PROBE_WEIGHTS, 8) + _packed(number, 4) + _packed(0, 8)
    with TemporaryDirectory() as folder:
        path = os.path.join(folder, "type.gguf")
        with open(path, "wb") as file:
            file.write(header + bytes(-len(header) % 32))
            file.truncate(file.tell() + PROBE_BYTES)
        with listening(lambda level, text: None):
            opened = base.gguf_init_from_file(os.fsencode(path), _InitParameters(True, None))
        if not opened:
            return None
        base.gguf_free(opened)
    base.ggml_type_name.restype = ctypes.c_char_p
    base.ggml_blck_size.restype = ctypes.c_int64
    base.ggml_type_size.restype = ctypes.c_size_t
    name = base.ggml_type_name(ctypes.c_int(number)).decode().upper()
    return name, int(base.ggml_blck_size(ctypes.c_int(number))), int(base.ggml_type_size(ctypes.c_int(number)))


class _InitParameters(ctypes.Structure):
    """gguf_init_params of ggml/include/gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def _packed(value: int, n_bytes: int) -> bytes:
    return value.to_bytes(n_bytes, "little")


def _add(number: int, name: str, block_size: int, type_size: int) -> GGMLQuantizationType:
    """Let the package's own enumeration know a type, so that every function that takes types takes it too.

    It is found by its number from now on, as `enum.Flag` does with combinations; lists of types do not show it.
    """
    member = int.__new__(GGMLQuantizationType, number)
    member._name_, member._value_ = name, number
    GGMLQuantizationType._value2member_map_[number] = member
    GGML_QUANT_SIZES[member] = (block_size, type_size)
    return member
