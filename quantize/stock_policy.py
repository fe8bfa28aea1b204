"""llama.cpp's own mixes as policies: a file type at work on one model, tensor by tensor in the order of writing.

Source: llama_tensor_get_type_impl of src/llama-quant.cpp; `stock_mixes.py` holds its rules.
"""

from dataclasses import dataclass, field

from gguf import GGMLQuantizationType

from ..models.tensor_roles import Role, layer_in, role_of
from ..models.tensor_types import TensorShape, row_fits
from .facts import ModelFacts
from .file_types import FileType
from .mixes import Mix, Mixed, Policy
from .stock_mixes import Place, StockMix, stock_mix_of

_T = GGMLQuantizationType


def stock(file_type: FileType) -> Mix:
    """Return the mix that llama.cpp's quantizer makes of a file type."""

    def begin(mixed: Mixed) -> Policy:
        assert file_type.qtype is not None
        rules = stock_mix_of(file_type.name, mixed.facts.architecture)
        return StockPolicy(mixed, file_type.name, file_type.qtype, rules)

    return Mix(file_type.name, file_type, begin)


@dataclass
class StockPolicy:
    """One file type at work on one model; counts the tensors of some roles as they pass, as llama.cpp does."""

    mixed: Mixed
    file_type: str
    base: GGMLQuantizationType
    rules: StockMix
    seen: dict[Role, int] = field(default_factory=dict)

    def __call__(self, facts: ModelFacts, tensor: TensorShape) -> GGMLQuantizationType:
        """Return the type of the next tensor, before the fallback for odd row lengths."""
        role = role_of(tensor.name)
        sensitive = ("attn_q_a", "attn_q_b", "nextn.eh_proj")
        if facts.architecture == "glm5-next" and any(part in tensor.name for part in sensitive):
            return _T.Q8_0
        if role is Role.OUTPUT or (role is Role.TOKEN_EMBD and facts.tied):
            given = self.mixed.options.output_tensor_type
            return self._output_type(tensor.shape[0]) if given is None else given
        if self.file_type == "MXFP4_MOE":
            return _T.MXFP4 if self._is_expert(tensor, role) else _T.Q8_0
        place = self._place(tensor.name, role)
        wanted = next((qtype for holds, qtype in self.rules.rules(role) if holds(place)), self.base)
        return wanted if self.rules.lowest else self._attention_extras(role, wanted)

    def _output_type(self, row_length: int) -> GGMLQuantizationType:
        """Return the type of the output matrix, or of token embeddings that serve as such."""
        eight_bits = self.base == _T.Q8_0 or self.file_type == "MXFP4_MOE"
        if eight_bits or self.mixed.facts.architecture == "falcon" or not row_fits(row_length, self.base):
            return _T.Q8_0
        return self.rules.output[0][1] if self.rules.output else _T.Q6_K

    def _is_expert(self, tensor: TensorShape, role: Role) -> bool:
        stacked = len(tensor.shape) > 2 and tensor.shape[2] > 1
        if self.mixed.facts.architecture == "bailingmoe3":
            return stacked and role in (Role.FFN_UP, Role.FFN_GATE, Role.FFN_DOWN)
        return stacked

    def _place(self, name: str, role: Role) -> Place:
        """Return where a tensor stands: value matrices are counted, feed-forward layers are read off the name.

        Dense models and the lowest file types count the feed-forward tensors too.
        """
        if role not in (Role.ATTN_V, Role.FFN_DOWN, Role.FFN_GATE, Role.FFN_UP):
            return Place(self.mixed.facts, self.mixed.has_imatrix)
        index = self.seen.get(role, 0)
        self.seen[role] = index + 1
        if role is Role.ATTN_V:
            return Place(self.mixed.facts, self.mixed.has_imatrix, index, self.mixed.n_attn_v)
        if self.mixed.facts.n_expert > 1 and not self.rules.lowest:
            index = layer_in(name, self.mixed.facts.n_layer)
        return Place(self.mixed.facts, self.mixed.has_imatrix, index, self.mixed.facts.n_layer)

    def _attention_extras(self, role: Role, wanted: GGMLQuantizationType) -> GGMLQuantizationType:
        """Raise keys and values where they are a small part of the model: 70B's shared heads, eight experts."""
        if role in (Role.ATTN_K, Role.ATTN_V) and self.mixed.facts.n_expert == 8:
            return _T.Q8_0
        if role is Role.ATTN_V and self.mixed.facts.seventy_b and wanted in (_T.Q3_K, _T.Q4_K):
            return _T.Q5_K
        return wanted
