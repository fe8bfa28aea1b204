"""A GGUF file in, its header out, or one line about what is wrong with it.

llama.cpp reports most broken files, but ends the process on some: those are found here, before it sees them. Each
check below stands for an assertion of llama.cpp, named beside it.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gguf.constants import GGMLQuantizationType, Keys, TokenType

from ..formats.errors import GgufError
from ..formats.gguf_file import GgufFile, read_gguf
from ..models.gguf_kind import demand_model
from ..models.graphs import PLAIN
from ..models.kv_cache import MOST_LAYERS

# LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS in src/llama-hparams.h
MOST_EXPERTS = 1024
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
# Experts of each token id, which are numbers (src/models/deepseek4.cpp)
TABLES = ("ffn_gate_tid2eid.weight",)
NOT_FOR_WEIGHTS = {getattr(GGMLQuantizationType, name) for name in ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")}


def check_gguf(path: Path, file: GgufFile | None = None) -> GgufFile:
    """Read the header of a file, and of all its shards, and check what llama.cpp would end the process on.

    `file` is the header where it was just read. Raises GgufError with the first problem, naming the file.
    """
    file = file or read_gguf(path)
    demand_model(file)
    if file.metadata.get(Keys.Tokenizer.MODEL) == "bert":
        raise GgufError(f"{path}: its tokenizer is that of an encoder (bert), which makes embeddings and no text")
    problem = next(problems(file), None)
    if problem:
        problem = problem.encode("utf-8", "backslashreplace").decode()
        raise GgufError(f"{path}: {problem}; the file is broken, convert or download it again")
    return file


def problems(file: GgufFile) -> Iterator[str]:
    """Yield what is wrong, each in a few words."""
    if not file.tensors:
        yield "it holds no tensors"
    yield from hyper_parameters(file)
    yield from expert_numbers(file)
    yield from tensor_types(file)
    yield from vocabulary(file)


def hyper_parameters(file: GgufFile) -> Iterator[str]:
    """Check layers, heads, epsilon and rotation (llama_model_base::load_hparams in src/llama-model.cpp)."""
    if not isinstance(file.metadata.get(Keys.General.ARCHITECTURE), str):
        yield f"{Keys.General.ARCHITECTURE} is missing"
        return
    yield from whole_number(file, Keys.LLM.BLOCK_COUNT, 1, MOST_LAYERS)
    for key in (Keys.Attention.LAYERNORM_RMS_EPS, Keys.Attention.LAYERNORM_EPS):
        epsilon = file.hyper(key)
        if epsilon is not None and not (is_number(epsilon) and math.isfinite(epsilon) and epsilon >= 0):
            yield f"{name(file, key)} is {epsilon!r}"  # ggml_rms_norm asserts eps >= 0
    scaling = file.hyper(Keys.Rope.SCALING_TYPE)
    if scaling is not None and scaling not in ROPE_SCALINGS:
        yield f"{name(file, Keys.Rope.SCALING_TYPE)} is {scaling!r}, not one of {', '.join(ROPE_SCALINGS)}"
    if file.architecture in PLAIN:
        yield from head_sizes(file)


def head_sizes(file: GgufFile) -> Iterator[str]:
    """Check that keys, values and rotation have one size per head."""
    n_embd, n_head = file.hyper(Keys.LLM.EMBEDDING_LENGTH), file.hyper(Keys.Attention.HEAD_COUNT)
    if isinstance(n_head, list):
        n_head = n_head[0] if n_head else None
    default = n_embd // n_head if isinstance(n_embd, int) and isinstance(n_head, int) and n_head > 0 else None
    keys = (Keys.Attention.KEY_LENGTH, Keys.Attention.VALUE_LENGTH, Keys.Rope.DIMENSION_COUNT)
    given = {name(file, key): file.hyper(key) for key in keys if file.hyper(key) is not None}
    key_length = file.hyper(Keys.Attention.KEY_LENGTH, default)
    value_length = file.hyper(Keys.Attention.VALUE_LENGTH, default)
    if any(size != key_length for size in (value_length, file.hyper(Keys.Rope.DIMENSION_COUNT, key_length))):
        listed = ", ".join(f"{key} {value}" for key, value in given.items())
        yield f"{listed} do not agree with each other and {n_embd} embeddings over {n_head} heads"


def expert_numbers(file: GgufFile) -> Iterator[str]:
    """Check experts, experts per token and their groups."""
    n_expert, n_used = file.hyper(Keys.LLM.EXPERT_COUNT, 0), file.hyper(Keys.LLM.EXPERT_USED_COUNT, 0)
    yield from whole_number(file, Keys.LLM.EXPERT_COUNT, 0, MOST_EXPERTS, default=0)
    if not isinstance(n_expert, int):
        return
    used = n_used if isinstance(n_used, list) else [n_used]
    # Layers without experts may say 0, as long as one has some.
    whole = all(isinstance(each, int) and 0 <= each <= n_expert for each in used)
    if not whole or max(used, default=0) < min(n_expert, 1):
        yield f"{n_used} experts per token of {n_expert} experts"
    if len(set(map(str, used))) > 1 and file.architecture in PLAIN:
        yield f"{name(file, Keys.LLM.EXPERT_USED_COUNT)} differs between layers"
    n_groups = file.hyper(Keys.LLM.EXPERT_GROUP_COUNT, 0)
    yield from whole_number(file, Keys.LLM.EXPERT_GROUP_COUNT, 0, max(n_expert - 1, 0), default=0)
    if isinstance(n_groups, int) and n_groups > 1:
        if n_expert % n_groups:
            yield f"{n_expert} experts cannot be cut into {n_groups} groups"
        yield from whole_number(file, Keys.LLM.EXPERT_GROUP_USED_COUNT, 1, n_groups - 1)


def tensor_types(file: GgufFile) -> Iterator[str]:
    """Check that matrices have types that ggml multiplies, and vectors are F32 (ggml-cpu/ops.cpp)."""
    for tensor in file.tensors.values():
        if tensor.qtype in NOT_FOR_WEIGHTS and not tensor.name.endswith(TABLES):
            yield f"tensor {tensor.name} has type {tensor.qtype.name}, which is none for weights"
        elif len(tensor.shape) == 1 and tensor.qtype is not GGMLQuantizationType.F32:
            yield f"tensor {tensor.name} is a vector of type {tensor.qtype.name}, and must be F32"


def vocabulary(file: GgufFile) -> Iterator[str]:
    """Check the tokenizer (llama_vocab::impl::load and byte_to_token in src/llama-vocab.cpp)."""
    metadata = file.metadata
    kind = metadata.get(Keys.Tokenizer.MODEL)
    if kind in ("none", "no_vocab"):
        return
    tokens = metadata.get(Keys.Tokenizer.LIST)
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        if kind is not None:
            yield f"{Keys.Tokenizer.LIST} is missing or holds no strings"
        return
    for key in (Keys.Tokenizer.SCORES, Keys.Tokenizer.TOKEN_TYPE):
        values = metadata.get(key)
        if isinstance(values, list) and len(values) < len(tokens):
            yield f"{key} has {len(values)} entries for {len(tokens)} tokens"
    # llama.cpp gives empty tokens names of their own.
    spelled = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    known = set(spelled)
    if len(known) != len(spelled):
        yield f"the token {first_repeated(spelled)!r} is in the vocabulary twice"


def unspelled_bytes(file: GgufFile) -> frozenset[int]:
    """Return the bytes that a SentencePiece vocabulary has no token for; empty for other tokenizers.

    Such a file loads, and runs on texts that need none of them (byte_to_token in src/llama-vocab.cpp).
    """
    tokens = file.metadata.get(Keys.Tokenizer.LIST)
    if file.metadata.get(Keys.Tokenizer.MODEL) != "llama" or not isinstance(tokens, list):
        return frozenset()
    known = set(tokens)
    return frozenset(
        byte for byte in range(256) if not (f"<0x{byte:02X}>" in known or (byte < 128 and chr(byte) in known))
    )


def unspelled_characters(file: GgufFile, missing: frozenset[int], text: str) -> list[str]:
    """Return the characters of a text that a vocabulary without these bytes cannot spell, in order."""
    tokens, kinds = file.metadata[Keys.Tokenizer.LIST], file.metadata.get(Keys.Tokenizer.TOKEN_TYPE) or []
    for token, kind in zip(tokens, kinds, strict=False):
        if token and kind in (TokenType.CONTROL, TokenType.USER_DEFINED):
            text = text.replace(token, "")
    known = set(tokens)
    characters = dict.fromkeys(text.replace(" ", "▁"))
    return [one for one in characters if one not in known and missing & set(one.encode("utf-8", "replace"))]


def whole_number(file: GgufFile, key: str, least: int, most: int, default: Any = None) -> Iterator[str]:
    """Check that a hyper-parameter is a whole number in a range; without a default it must be there."""
    value = file.hyper(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        yield f"{name(file, key)} is {'missing' if value is None else repr(value)[:40]}, not in {least} to {most}"


def is_number(value: Any) -> bool:
    """Tell whether a value of the metadata is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def name(file: GgufFile, key: str) -> str:
    """Return a key with the file's architecture in it."""
    return key.format(arch=file.architecture)


def first_repeated(tokens: Sequence[str]) -> str:
    """Return the first token that was there before."""
    seen: set[str] = set()
    return next(token for token in tokens if token in seen or seen.add(token))
