"""Every family that is known, by the name that config.json has for it."""

from ..family import by_name
from .deepseek import DEEPSEEK
from .granite import GRANITE_MOE, GRANITE_MOE_SHARED
from .llama import LLAMA_FAMILY, MISTRAL, MIXTRAL
from .olmoe import OLMOE
from .qwen import QWEN2_FAMILY, QWEN2_MOE, QWEN3_FAMILY, QWEN3_MOE

FAMILIES = by_name(
    (
        MIXTRAL,
        LLAMA_FAMILY,
        MISTRAL,
        QWEN2_FAMILY,
        QWEN3_FAMILY,
        QWEN2_MOE,
        QWEN3_MOE,
        DEEPSEEK,
        OLMOE,
        GRANITE_MOE,
        GRANITE_MOE_SHARED,
    )
)
