"""How much memory a model needs and where: facts of a GGUF file and load options in, bytes per device out.

Nothing is loaded: it is llama.cpp's own arithmetic (src/llama-model.cpp for the weights, src/llama-kv-cache.cpp for
the cache, graphs of the llama family for compute buffers). `dryload.measure` replaces the last by llama.cpp's numbers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, Keys

from ...formats.errors import EngineError
from ...formats.gguf_file import GgufFile
from ...models.kv_cache import CacheRows, cache_rows, rounded_context
from ..load_options import CACHE_TYPES, LoadOptions
from ..load_parameters import default_context

CPU = "CPU"
# LLM_FFN_EXPS_REGEX in llama.cpp's common/common.h: what --cpu-moe keeps at home
EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
# the tensors of LLM_TENSOR_LAYER_INPUT in src/llama-arch.cpp; they never leave the CPU
INPUT = re.compile(r"(token_embd|token_embd_norm|token_types|position_embd|per_layer_token_embd)\.")
BLOCK = re.compile(r"blk\.(\d+)\.")
# GGML_OP_OFFLOAD_MIN_BATCH of ggml's GPU backends
OFFLOADED_PROMPT = 32


@dataclass(frozen=True)
class Layer:
    """Bytes of one layer: `dense` without its experts; elements of one token's row in each cache."""

    dense: int
    experts: int
    k_row: int
    v_row: int


@dataclass(frozen=True)
class ModelFacts:
    """What placement must know of a model. `tensors` holds bytes by name."""

    name: str
    tensors: Mapping[str, int]
    k_rows: tuple[int, ...]
    v_rows: tuple[int, ...]
    k_head: int
    v_head: int
    n_ctx_train: int
    n_embd: int
    n_head: int
    n_ff: int
    n_expert_used: int
    n_vocab: int

    @property
    def n_layer(self) -> int:
        """Number of repeating layers."""
        return len(self.k_rows)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Bytes per layer."""
        dense, experts = [0] * self.n_layer, [0] * self.n_layer
        for name, n_bytes in self.tensors.items():
            if block := BLOCK.match(name):
                target = experts if is_expert(name) else dense
                target[int(block[1])] += n_bytes
        return tuple(map(Layer, dense, experts, self.k_rows, self.v_rows))

    @cached_property
    def output_bytes(self) -> int:
        """Bytes of what lies behind the last layer; tied embeddings are there a second time."""
        return sum(n for name, n in self.tensors.items() if is_output(name)) + self.tied_bytes

    @property
    def tied_bytes(self) -> int:
        """Bytes of the token embeddings when they are the output matrix too."""
        return 0 if "output.weight" in self.tensors else self.tensors.get("token_embd.weight", 0)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: int = 0
    kv: int = 0
    compute: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.kv + self.compute


def is_output(name: str) -> bool:
    """Tell whether a tensor belongs to the output layer."""
    return not BLOCK.match(name) and not INPUT.match(name)


def is_expert(name: str) -> bool:
    """Tell whether a tensor holds a layer's routed experts."""
    return re.search(EXPERTS, name) is not None


def read_facts(file: GgufFile) -> ModelFacts:
    """Return the facts of a GGUF file. Raises EngineError when the file lacks what every model has."""

    def number(key: str, default: int = 0) -> int:
        value = file.hyper(key, default)
        return max((int(v) for v in value), default=default) if isinstance(value, list) else int(value or default)

    n_layer, n_embd = number(Keys.LLM.BLOCK_COUNT), number(Keys.LLM.EMBEDDING_LENGTH)
    n_head = number(Keys.Attention.HEAD_COUNT)
    if not n_layer or not n_embd:
        raise EngineError(f"{file.path}: no {file.architecture}.block_count or .embedding_length; not a language model")
    rows = cache_rows(file.hyper)
    embeddings = file.tensors.get("token_embd.weight")
    return ModelFacts(
        name=file.path.name,
        tensors={name: tensor.n_bytes for name, tensor in file.tensors.items()},
        k_rows=rows.k_rows,
        v_rows=rows.v_rows,
        k_head=rows.k_head,
        v_head=rows.v_head,
        n_ctx_train=number(Keys.LLM.CONTEXT_LENGTH),
        n_embd=n_embd,
        n_head=n_head,
        n_ff=number(Keys.LLM.EXPERT_FEED_FORWARD_LENGTH) or number(Keys.LLM.FEED_FORWARD_LENGTH),
        n_expert_used=number(Keys.LLM.EXPERT_USED_COUNT, 1) if number(Keys.LLM.EXPERT_COUNT) else 1,
        n_vocab=embeddings.shape[1] if embeddings and len(embeddings.shape) > 1 else 0,
    )


def with_tensor_bytes(facts: ModelFacts, name: str, n_bytes: Mapping[str, int]) -> ModelFacts:
    """Return the facts of the same model in another quantization."""
    return replace(facts, name=name, tensors={**facts.tensors, **n_bytes})


def context_length(facts: ModelFacts, options: LoadOptions) -> int:
    """Return the tokens that llama.cpp allots: the wish or the default, rounded up to 256."""
    wish = options.n_ctx or default_context(facts.n_ctx_train)
    return rounded_context(wish)


def kv_bytes(facts: ModelFacts, options: LoadOptions) -> list[int]:
    """Return the bytes of each layer's cache. Raises EngineError for a type that its heads cannot have."""
    n_ctx = context_length(facts, options)
    k_type = _checked_type(options.cache_type_k, "k", facts.k_head)
    v_type = _checked_type(options.cache_type_v, "v", facts.v_head)
    if GGML_QUANT_SIZES[v_type][0] > 1 and options.flash_attn == "off":
        raise EngineError("a quantized V cache needs flash attention; leave -fa/--flash-attn on or use -ctv f16")
    rows = CacheRows(facts.k_rows, facts.v_rows, facts.k_head, facts.v_head)
    return rows.layer_bytes(n_ctx, k_type, v_type)


def _cache_type(name: str) -> GGMLQuantizationType:
    if name not in CACHE_TYPES:
        raise EngineError(f"{name!r} is not a type for the KV cache; use one of {', '.join(CACHE_TYPES)}")
    return GGMLQuantizationType[name.upper()]


def _checked_type(name: str, side: str, head: int) -> GGMLQuantizationType:
    qtype = _cache_type(name)
    block = GGML_QUANT_SIZES[qtype][0]
    if head % block:
        raise EngineError(
            f"the {side.upper()} cache cannot be {name}: heads of {head} values are not blocks of {block}; use f16"
        )
    return qtype


def device_of_layers(facts: ModelFacts, options: LoadOptions, devices: Sequence[str]) -> list[str]:
    """Return the device of each layer and, last, of the output layer, as `load_tensors` of llama-model.cpp does.

    `devices` are those that take layers, in order; without `tensor_split` the caller must have only one.
    """
    positions = facts.n_layer + 1
    n_gpu = positions if options.n_gpu_layers < 0 else min(options.n_gpu_layers, positions)
    if options.split_mode == "none" and devices:
        devices = devices[options.main_gpu : options.main_gpu + 1] if options.main_gpu >= 0 else ()
    if not devices:
        return [CPU] * positions
    shares = list(options.tensor_split[: len(devices)]) or [1.0] * len(devices)
    shares += [0.0] * (len(devices) - len(shares))
    ends, sum_of_all = [], sum(shares) or 1.0
    for index in range(len(shares)):
        ends.append(sum(shares[: index + 1]) / sum_of_all)
    start = positions - n_gpu
    places = [CPU] * start
    for i in range(n_gpu):
        index = next((d for d, end in enumerate(ends) if end > i / n_gpu), len(devices) - 1)
        places.append(devices[index])
    return places


def locate(facts: ModelFacts, options: LoadOptions, devices: Sequence[str]) -> dict[str, str]:
    """Return the device of every tensor under these options."""
    layers = device_of_layers(facts, options, devices)
    overrides = [(re.compile(pattern), device) for pattern, device in options.tensor_overrides]
    places = {}
    for name in facts.tensors:
        block = BLOCK.match(name)
        place = CPU if INPUT.match(name) else layers[int(block[1])] if block else layers[-1]
        places[name] = next((device for pattern, device in overrides if pattern.search(name)), place)
    return places


def predict(facts: ModelFacts, options: LoadOptions, devices: Sequence[str]) -> dict[str, Memory]:
    """Return the memory on the CPU and on each of `devices` under these options; compute is an estimate."""
    layers, places = device_of_layers(facts, options, devices), locate(facts, options, devices)
    weights, kv = dict.fromkeys((CPU, *devices), 0), dict.fromkeys((CPU, *devices), 0)
    for name, place in places.items():
        weights[place] = weights.get(place, 0) + facts.tensors[name]
    if layers[-1] != CPU:
        weights[layers[-1]] += facts.tied_bytes
    for layer, n_bytes in enumerate(kv_bytes(facts, options)):
        kv[layers[layer] if options.offload_kqv else CPU] += n_bytes
    compute = estimate_compute(facts, options, layers, places)
    return {name: Memory(n_bytes, kv.get(name, 0), compute.get(name, 0)) for name, n_bytes in weights.items()}


def estimate_compute(
    facts: ModelFacts, options: LoadOptions, layers: Sequence[str], places: Mapping[str, str]
) -> dict[str, int]:
    """Return about how large llama.cpp's compute buffers become, rather too large than too small.

    The largest of the moments that a graph of the llama family goes through, with T tokens in flight: attention
    (with or without the scores), feed-forward (up, gate and their product of every expert used), logits.
    """
    n_ctx = context_length(facts, options)
    tokens = min(options.n_ubatch, options.n_batch, n_ctx)
    row, mask = 4 * tokens * facts.n_embd, 2 * tokens * n_ctx
    attention = mask + (5 if options.offload_kqv else 6) * row
    inputs = mask
    if options.flash_attn == "off":
        scores = 4 * tokens * n_ctx * facts.n_head
        attention += scores + mask + 8 * tokens * max(facts.k_rows, default=0)
        inputs = 3 * mask
    experts_used = options.n_expert_used or facts.n_expert_used
    feed_forward = mask + 12 * tokens * facts.n_ff * experts_used + (4 if options.offload_kqv else 6) * row
    logits = 4 * tokens * facts.n_vocab + 2 * row
    largest = {CPU: inputs + 2 * row}
    for device in layers[:-1]:
        largest[device] = max(largest.get(device, 0), attention)
    for name, device in places.items():
        if "ffn_up" in name or "ffn_gate_up" in name:
            largest[device] = max(largest.get(device, 0), feed_forward)
    largest[layers[-1]] = max(largest.get(layers[-1], 0), logits)
    if gpu := next((device for device in layers if device != CPU and not device.startswith("RPC")), None):
        # a GPU computes long prompts for the CPU too: llama.cpp copies one weight there at a time
        home = (facts.tensors[name] for name, device in places.items() if device == CPU and BLOCK.match(name))
        largest[gpu] += max(home, default=0) if tokens >= OFFLOADED_PROMPT else 0
    if len(largest) > 2 and CPU not in layers and options.offload_kqv and not options.tensor_overrides:
        # complete devices work as a pipeline of four batches, each with inputs of its own
        largest = {d: n + 3 * inputs + (3 if d == CPU else 7) * row for d, n in largest.items()}
    return largest
