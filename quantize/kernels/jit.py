"""How the kernels are compiled: strict IEEE arithmetic, without the GIL, kept on disk between runs.

Numba keeps the code in `__pycache__` beside the source, else in the user's cache folder; where neither can be
written (a read-only installation) the kernels are compiled anew in each process.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import config


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a part of a kernel; LLVM puts it into its callers."""
    return _compiler(function, forceinline=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point that Python calls."""
    settings: Any = config
    before = settings.CACHE_DIR
    settings.CACHE_DIR = str((Path(before) if before else _FOLDER / "__pycache__") / f"kernels-{_sources()}")
    try:
        return _compiler(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:  # what Numba raises when no folder for the cache can be written
        return _compiler(function, nogil=True, error_model="numpy")
    finally:
        settings.CACHE_DIR = before


_FOLDER = Path(__file__).parent
_compiler: Any = njit


@cache
def _sources() -> str:
    """Return a hash of all kernels' sources: Numba itself sees only changes of the file that a kernel stands in."""
    hashed = hashlib.sha256()
    rounding = [path for path in _FOLDER.parent.glob("rounding/*.py") if b"jit import" in path.read_bytes()]
    for path in sorted([*_FOLDER.glob("*.py"), *rounding]):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()[:16]
