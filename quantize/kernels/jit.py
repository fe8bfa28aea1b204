"""How the kernels are compiled: strict IEEE arithmetic, without the GIL, kept on disk between runs.

Numba keeps the code beside the source, else in the user's cache folder; where neither can be written (a
read-only installation) the kernels are compiled anew in each process.
"""

from collections.abc import Callable
from typing import Any

from numba import njit


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a part of a kernel; LLVM puts it into its callers."""
    return njit(function, forceinline=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point that Python calls."""
    try:
        return njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:  # what Numba raises when no folder for the cache can be written
        return njit(function, nogil=True, error_model="numpy")
