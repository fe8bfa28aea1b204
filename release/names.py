"""What others make of file names: the Hub labels a file by the type in its name, llama.cpp finds one by REPO:TAG.

The Hub takes the last type in the name, perhaps with UD- before it and _LETTERS behind it (packages/gguf of
huggingface.js); llama.cpp the first model that has TAG before a "." or a "-" (find_best_model of common/download.cpp).
"""

import re
from collections.abc import Mapping, Sequence

from gguf.constants import GGMLQuantizationType, LlamaFileType

FILE_TYPES = [one.name.removeprefix("ALL_").removeprefix("MOSTLY_") for one in LlamaFileType if one.name != "GUESSED"]
TYPES = sorted({*FILE_TYPES, *(one.name for one in GGMLQuantizationType)}, key=lambda name: (-len(name), name))
LABEL = re.compile(rf"(?:UD-)?(?:{'|'.join(TYPES)})(?:_[A-Z]+)?")
# What is no model to llama.cpp, by its name alone (gguf_filename_is_model).
NO_MODEL = ("mmproj", "imatrix")


def hub_label(name: str) -> str | None:
    """Return the type that the Hub shows for a file of this name; None when it finds none."""
    found = LABEL.findall(name.upper())
    return found[-1] if found else None


def found_by_tag(names: Sequence[str], tag: str) -> str | None:
    """Return the file that llama.cpp takes for REPO:TAG, of a repository's files in the order of their names."""
    pattern = re.compile(re.escape(tag) + r"[.-]", re.IGNORECASE)
    models = (name for name in sorted(names) if name.endswith(".gguf") and not any(no in name for no in NO_MODEL))
    return next((name for name in models if pattern.search(name)), None)


def mistaken(files: Mapping[str, str]) -> list[str]:
    """Return a sentence for each file that is taken for another; `files` are types by name (of shards the first)."""
    found = []
    for name, file_type in files.items():
        if (label := hub_label(name)) != file_type:
            found.append(f"{name}: the Hub will show it as {label or 'no type'}, not as {file_type}")
        if (first := found_by_tag(list(files), file_type)) != name:
            found.append(f"{name}: llama.cpp's -hf REPO:{file_type} finds {first} instead; leave out one of both types")
    return found
