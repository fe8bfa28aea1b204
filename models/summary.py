"""Facts about a model from its headers: metadata and tensors of a GGUF (or of a plan for one) come in, a
`Summary` goes out: parameters in all and per token, bytes by role and type, the KV cache at a context size.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from gguf.constants import GGMLQuantizationType, Keys, LlamaFileType

from ..formats.gguf_file import GgufFile, tensor_bytes
from ..writer.plan import Plan
from .kv_cache import MOST_LAYERS, cache_rows, whole
from .template_language import is_go_template
from .tensor_roles import Part, part_of

LONE_EXPERT = re.compile(r"^blk\.\d+\.ffn_(?:gate|up|down)\.(\d+)\.weight$")

# A text that only this kind of template contains, most specific first.
TEMPLATES = (
    ("<|start_header_id|>", "Llama 3"),
    ("<start_of_turn>", "Gemma"),
    ("<｜User｜>", "DeepSeek"),
    ("<|im_start|>", "ChatML"),
    ("[INST]", "Mistral [INST]"),
    ("<|user|>", "Zephyr"),
    ("### Instruction", "Alpaca"),
    ("GPT4 Correct User", "OpenChat"),
    ("USER:", "Vicuna"),
    ("User:", "User:/Assistant:"),
)


@dataclass(frozen=True)
class TensorFacts:
    """One tensor: `shape` in GGUF order, in weights."""

    name: str
    shape: tuple[int, ...]
    qtype: GGMLQuantizationType
    n_bytes: int
    role: Part

    @property
    def n_weights(self) -> int:
        """Weights in all."""
        return prod(self.shape)


@dataclass(frozen=True)
class Share:
    """The part of a model that has one role or one type."""

    n_tensors: int
    n_weights: int
    n_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of this part."""
        return 8 * self.n_bytes / self.n_weights if self.n_weights else 0.0


@dataclass(frozen=True)
class Summary:
    """What the headers of a model say. `metadata` is GGUF's, `tensors` in the order of the file."""

    metadata: Mapping[str, Any]
    tensors: tuple[TensorFacts, ...]

    def hyper(self, key: str, default: Any = None) -> Any:
        """Return a hyper-parameter by its key of `gguf.Keys` with {arch}."""
        return self.metadata.get(key.format(arch=self.architecture), default)

    def number(self, key: str) -> int:
        """Return a hyper-parameter as a number: the largest of one given per layer, 0 when there is none."""
        return whole(self.hyper(key))

    def text(self, key: str) -> str | None:
        """Return a text of the metadata, or None."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    @property
    def architecture(self) -> str:
        """general.architecture, or "unknown"."""
        return str(self.metadata.get(Keys.General.ARCHITECTURE, "unknown"))

    @property
    def name(self) -> str | None:
        """general.name."""
        return self.text(Keys.General.NAME)

    @property
    def file_type(self) -> str | None:
        """The file type's name ("Q4_K_M"), or None when the file does not say."""
        number = self.metadata.get(Keys.General.FILE_TYPE)
        try:
            return LlamaFileType(number).name.split("_", 1)[1].removeprefix("MOSTLY_")
        except (ValueError, IndexError):
            return None

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        return self.number(Keys.LLM.BLOCK_COUNT)

    @cached_property
    def n_expert(self) -> int:
        """Experts per layer; 0 for a dense model."""
        return self.number(Keys.LLM.EXPERT_COUNT)

    @property
    def n_expert_used(self) -> int:
        """Experts that each token passes; 0 for a dense model."""
        return self.number(Keys.LLM.EXPERT_USED_COUNT)

    @cached_property
    def n_params(self) -> int:
        """Parameters in all."""
        return sum(tensor.n_weights for tensor in self.tensors)

    @cached_property
    def n_expert_params(self) -> int:
        """Parameters of all routed experts together."""
        return sum(tensor.n_weights for tensor in self.tensors if tensor.role is Part.EXPERTS)

    @property
    def n_active_params(self) -> int:
        """Parameters that one token passes, embeddings included, as model cards count them."""
        if not self.n_expert:
            return self.n_params
        unused = self.n_expert_params * max(self.n_expert - self.n_expert_used, 0) // self.n_expert
        return self.n_params - unused

    @property
    def n_dense_params(self) -> int:
        """Parameters of the model with a single expert: the "7B" of a 4x7B."""
        if not self.n_expert:
            return self.n_params
        return self.n_params - self.n_expert_params + self.n_expert_params // self.n_expert

    @cached_property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight over all tensors."""
        return 8 * self.n_bytes / self.n_params if self.n_params else 0.0

    @property
    def lone_experts(self) -> bool:
        """Whether each expert is a tensor of its own, as in files from before April 2024 that nothing loads."""
        return any(LONE_EXPERT.match(tensor.name) for tensor in self.tensors)

    def by_role(self) -> dict[Part, Share]:
        """Return the parts by role, in the order of `Part`; empty ones are left out."""
        shares = _shares(self.tensors, lambda tensor: tensor.role)
        return {role: shares[role] for role in Part if role in shares}

    def by_type(self) -> dict[str, Share]:
        """Return the parts by tensor type, the largest first."""
        shares = _shares(self.tensors, lambda tensor: tensor.qtype.name)
        return dict(sorted(shares.items(), key=lambda item: -item[1].n_bytes))

    def kv_bytes(self, n_ctx: int, qtype: GGMLQuantizationType = GGMLQuantizationType.F16) -> int | None:
        """Return the bytes of the KV cache for one sequence of `n_ctx` tokens.

        llama.cpp rounds the context up to a multiple of 256. None for an architecture
        whose cache is of another kind (recurrent, latent attention) or when the headers do not say.
        """
        if not self.number(Keys.Attention.HEAD_COUNT) or self.hyper(Keys.Attention.KV_LORA_RANK):
            return None
        if self.n_layer > MOST_LAYERS:
            return None
        return sum(cache_rows(self.hyper).layer_bytes(n_ctx, qtype, qtype))

    @property
    def template_kind(self) -> str | None:
        """The kind of chat template ("ChatML"), "its own" for an unknown one, None without a template."""
        template = self.text(Keys.Tokenizer.CHAT_TEMPLATE)
        if template is None:
            return None
        if is_go_template(template):
            return "a Go template, as Ollama's; no Jinja"
        return next((kind for marker, kind in TEMPLATES if marker in template), "its own")


def summarize_gguf(file: GgufFile) -> Summary:
    """Return the facts of a GGUF file."""
    tensors = tuple(
        TensorFacts(tensor.name, tensor.shape, tensor.qtype, tensor.n_bytes, part_of(tensor.name))
        for tensor in file.tensors.values()
    )
    return Summary(_with_lone_experts(file.metadata, tensors), tensors)


def summarize_plan(plan: Plan) -> Summary:
    """Return the facts of a planned GGUF in the types of its source, which are a checkpoint's."""
    tensors = []
    for tensor in plan.tensors:
        qtype = GGMLQuantizationType[tensor.source_type]
        n_bytes = tensor_bytes(tensor.shape, qtype)
        tensors.append(TensorFacts(tensor.name, tensor.shape, qtype, n_bytes, part_of(tensor.name)))
    return Summary({key: field.value for key, field in plan.fields.items()}, tuple(tensors))


def _with_lone_experts(metadata: Mapping[str, Any], tensors: Iterable[TensorFacts]) -> Mapping[str, Any]:
    """Return the metadata with the experts counted from the tensors, when it does not count them itself."""
    key = Keys.LLM.EXPERT_COUNT.format(arch=metadata.get(Keys.General.ARCHITECTURE))
    numbers = [int(match[1]) for tensor in tensors if (match := LONE_EXPERT.match(tensor.name))]
    return {**metadata, key: max(numbers) + 1} if numbers and key not in metadata else metadata


def _shares(tensors: Iterable[TensorFacts], key: Callable[[TensorFacts], Any]) -> dict[Any, Share]:
    groups: dict[Any, list[TensorFacts]] = {}
    for tensor in tensors:
        groups.setdefault(key(tensor), []).append(tensor)
    return {
        one: Share(len(group), sum(t.n_weights for t in group), sum(t.n_bytes for t in group))
        for one, group in groups.items()
    }
