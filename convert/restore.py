"""The way back: a dense GGUF of the llama family as the Hugging Face checkpoint it could have come from.

Quantized weights are decoded and rounded to BF16. The tokenizer is rebuilt from GGUF's vocabulary. This gives
merges a base where only a GGUF can be had.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType, Keys, TokenType

from ..formats.errors import GgufError, OutputError
from ..formats.floats import to_bf16, widen
from ..formats.gguf_file import GgufFile
from ..formats.safetensors import pack_header
from ..formats.source import TensorInfo
from ..models.families import FAMILIES
from ..models.families.parts import EMBEDDING, OUTPUT, OUTPUT_NORM
from ..models.family import Single, gguf_name
from ..writer.gguf_source import GgufSource
from ..writer.plan import RopePermutation

DENSE = FAMILIES["LlamaForCausalLM"]
Decode = Callable[[GGMLQuantizationType, np.ndarray], np.ndarray]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PRE_TOKENIZERS: dict[str, Any] = {
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]},
    "gpt-2": BYTE_LEVEL,
}


def restore_checkpoint(file: GgufFile, folder: Path, decode: Decode) -> None:
    """Write the checkpoint folder; `decode(qtype, uint8 rows)` gives float32 rows.

    Raises OutputError when the folder exists, GgufError when the file is not a dense llama with a known
    byte-level tokenizer.
    """
    if folder.exists():
        raise OutputError(f"{folder}: exists already; choose another name")
    config = restored_config(file)
    tokenizer = restored_tokenizer(file)
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    _write_tensors(partial / "model.safetensors", file, config, decode)
    for name, content in (
        ("config.json", config),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", _tokenizer_config(file)),
    ):
        (partial / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, folder)


def restored_config(file: GgufFile) -> dict[str, Any]:
    """Return config.json. Raises GgufError when the file is not a dense llama."""
    if file.architecture != DENSE.name or file.hyper(Keys.LLM.EXPERT_COUNT):
        raise GgufError(f"{file.path}: not a dense llama; only these can be restored as a checkpoint")
    head_count = file.hyper(Keys.Attention.HEAD_COUNT)
    return {
        "architectures": [DENSE.hf_name],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": file.metadata.get(Keys.Tokenizer.BOS_ID),
        "eos_token_id": file.metadata.get(Keys.Tokenizer.EOS_ID),
        "pad_token_id": file.metadata.get(Keys.Tokenizer.PAD_ID),
        "hidden_act": "silu",
        "hidden_size": file.hyper(Keys.LLM.EMBEDDING_LENGTH),
        "initializer_range": 0.02,
        "intermediate_size": file.hyper(Keys.LLM.FEED_FORWARD_LENGTH),
        "max_position_embeddings": file.hyper(Keys.LLM.CONTEXT_LENGTH),
        "mlp_bias": False,
        "num_attention_heads": head_count,
        "num_hidden_layers": file.hyper(Keys.LLM.BLOCK_COUNT),
        "num_key_value_heads": file.hyper(Keys.Attention.HEAD_COUNT_KV, head_count),
        "rms_norm_eps": _shortest(file.hyper(Keys.Attention.LAYERNORM_RMS_EPS)),
        "rope_scaling": None,
        "rope_theta": _shortest(file.hyper(Keys.Rope.FREQ_BASE, 10000.0)),
        "tie_word_embeddings": gguf_name(OUTPUT.tensor) not in file.tensors,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": len(file.metadata[Keys.Tokenizer.LIST]),
    }


def restored_tokenizer(file: GgufFile) -> dict[str, Any]:
    """Return tokenizer.json. Raises GgufError when its pre-tokenizer is not one that can be rebuilt."""
    metadata = file.metadata
    pre = metadata.get(Keys.Tokenizer.PRE)
    if metadata.get(Keys.Tokenizer.MODEL) != "gpt2" or pre not in PRE_TOKENIZERS:
        raise GgufError(f"{file.path}: pre-tokenizer {pre!r} cannot be rebuilt, only {', '.join(PRE_TOKENIZERS)}")
    tokens, types = metadata[Keys.Tokenizer.LIST], metadata[Keys.Tokenizer.TOKEN_TYPE]
    special = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == TokenType.CONTROL
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "post_processor": None,
        "decoder": {**BYTE_LEVEL, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in metadata[Keys.Tokenizer.MERGES]],
        },
    }


def _tokenizer_config(file: GgufFile) -> dict[str, Any]:
    tokens = file.metadata[Keys.Tokenizer.LIST]
    names = {
        "bos_token": Keys.Tokenizer.BOS_ID,
        "eos_token": Keys.Tokenizer.EOS_ID,
        "unk_token": Keys.Tokenizer.UNK_ID,
        "pad_token": Keys.Tokenizer.PAD_ID,
    }
    config: dict[str, Any] = {name: tokens[file.metadata[key]] for name, key in names.items() if key in file.metadata}
    config |= {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.hyper(Keys.LLM.CONTEXT_LENGTH),
        "tokenizer_class": "GPT2Tokenizer",
    }
    if Keys.Tokenizer.CHAT_TEMPLATE in file.metadata:
        config["chat_template"] = file.metadata[Keys.Tokenizer.CHAT_TEMPLATE]
    return config


def _shortest(value: float) -> float:
    """Return the shortest decimal that is the same float32: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rules(config: dict[str, Any]) -> Iterator[tuple[Single, int]]:
    yield EMBEDDING, 0
    for layer in range(config["num_hidden_layers"]):
        for rule in (*DENSE.attention, *DENSE.dense):
            yield rule, layer
    yield OUTPUT_NORM, 0
    yield OUTPUT, 0


def _write_tensors(path: Path, file: GgufFile, config: dict[str, Any], decode: Decode) -> None:
    source = GgufSource(file)
    found: list[tuple[TensorInfo, str, RopePermutation | None]] = []
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    for rule, layer in _rules(config):
        name = gguf_name(rule.tensor, rule.suffix, layer)
        if name in file.tensors:
            info = TensorInfo(rule.hf_names[0].format(layer=layer), "BF16", source.tensors[name].shape, "")
            found.append((info, name, RopePermutation(heads[rule.heads]) if rule.heads else None))
        elif not rule.optional:
            raise GgufError(f"{file.path}: tensor {name} is missing")
    with open(path, "wb") as target:
        target.write(pack_header(info for info, _, _ in found))
        for info, name, permutation in found:
            rows = source.read_rows(name, 0, info.n_rows)
            wide = decode(file.tensors[name].qtype, rows) if rows.dtype == np.uint8 else widen(rows)
            if permutation:
                straight = np.empty_like(wide)
                straight[permutation.rows(0, info.n_rows, info.n_rows)] = wide
                wide = straight
            target.write(to_bf16(wide).data)
        target.flush()
        os.fsync(target.fileno())
