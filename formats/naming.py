"""Names of GGUF files, by the GGUF naming convention: `SmolBruce-4x135M-Q4_K_M.gguf`.

Source: ggml/docs/gguf.md, section "GGUF Naming Convention".
"""

import re
from collections.abc import Mapping
from pathlib import Path

from gguf import naming_convention
from gguf.constants import Keys

from .gguf_fields import Field


def gguf_stem(fields: Mapping[str, Field], type_name: str) -> str:
    """Return the file name without its suffix, from the metadata of a model and the name of a type."""

    def value(key: str) -> str | None:
        field = fields.get(key)
        return str(field.value) if field else None

    general = Keys.General
    return re.sub(
        r'[<>:"/\\|?*\x00-\x1f]',
        "-",
        naming_convention(
            value(general.NAME),
            value(general.BASENAME),
            value(general.FINETUNE),
            value(general.VERSION),
            value(general.SIZE_LABEL),
            type_name,
        ),
    )


def output_path(fields: Mapping[str, Field], type_name: str, outfile: Path | None, folder: Path) -> Path:
    """Return where an output goes: the file that was named, or a conventional name in the folder.

    An `outfile` that is a folder, or ends with a separator, gets the conventional name inside.
    """
    name = gguf_stem(fields, type_name) + ".gguf"
    if outfile is None:
        return folder / name
    return outfile / name if outfile.is_dir() else outfile
