"""Which programs make and measure a release, by version: another one may make other bytes."""

import re
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("moe-gguf", "llama-cpp-python", "gguf", "numba", "numpy")


def versions() -> dict[str, str]:
    """Return the version of each program that has a say in the bytes or the measurements."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | ({"llama.cpp": build} if (build := llama_build()) else {})


def llama_build() -> str | None:
    """Return what identifies the llama.cpp that is loaded: the digest of its library; None where there is none."""
    from ..formats.errors import EngineError
    from ..formats.llamacpp import library_folder

    try:
        folder = library_folder()
    except EngineError:
        return None
    libraries = sorted(path for path in folder.glob("*") if re.fullmatch(r"(lib)?llama\.(so|dylib|dll)", path.name))
    if not libraries:
        return None
    return "libllama sha256:" + sha256(libraries[0].read_bytes()).hexdigest()[:16]
