"""Names of GGUF files, by the GGUF naming convention: `SmolBruce-4x135M-Q4_K_M.gguf`.

Source: ggml/docs/gguf.md, section "GGUF Naming Convention".
"""

import re
from collections.abc import Mapping

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
