"""What a user asks of a mix, and what the mix answers for each tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

from gguf import GGMLQuantizationType

from ..formats.gguf_file import tensor_bytes


@dataclass(frozen=True)
class MixOptions:
    """What a user can override; `tensor_types` are (unanchored pattern, type), the first match decides.

    `keep_order` takes the tensors as they come, as llama.cpp does for --keep-split.
    """

    tensor_types: Sequence[tuple[str, GGMLQuantizationType]] = ()
    output_tensor_type: GGMLQuantizationType | None = None
    token_embedding_type: GGMLQuantizationType | None = None
    leave_output_tensor: bool = False
    pure: bool = False
    allow_requantize: bool = False
    prune_layers: Sequence[int] = ()
    keep_order: bool = False


@dataclass(frozen=True)
class TypeChoice:
    """A tensor of the output, in writing order; `wanted` is the type before the fallback for odd row lengths.

    `kept` marks tensors that keep their type whatever the file type is; names differ where layers were pruned.
    """

    name: str
    qtype: GGMLQuantizationType
    wanted: GGMLQuantizationType
    reason: str
    kept: bool
    source_name: str
    source_qtype: GGMLQuantizationType
    shape: tuple[int, ...]

    @property
    def fell_back(self) -> bool:
        """Whether the rows did not fit the wanted type."""
        return self.qtype != self.wanted

    @property
    def converts(self) -> bool:
        """Whether the bytes change."""
        return self.qtype != self.source_qtype

    @property
    def n_bytes(self) -> int:
        """The exact bytes of the tensor in the output, without padding."""
        return tensor_bytes(self.shape, self.qtype)
