"""The checkpoints that the golden files were made from; the oracles and the tests build the same ones."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoints import Tiny, write_checkpoint

CARD = """---
license: apache-2.0
language:
- en
- no
tags:
- moe
- merge
base_model:
- example-org/Tiny-Bruce-1M-Instruct-v0.2
- https://huggingface.co/example-org/TinyParent
datasets:
- example-org/tiny-talk
model_creator: Example
---
# A card
"""
OTHER_LICENSE = "---\nlicense: other\nlicense_name: tiny-license\nlicense_link: LICENSE\n---\n"
GENERATION = '{"bos_token_id": 1, "eos_token_id": 2, "do_sample": true, "temperature": 0.6, "top_k": 40, "top_p": 0.9}'
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
NO_TEMPLATE = '{"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "tokenizer_class": "GPT2Tokenizer"}'
LLAMA3 = (
    ("rope_type", "llama3"),
    ("factor", 8.0),
    ("low_freq_factor", 1.0),
    ("high_freq_factor", 4.0),
    ("original_max_position_embeddings", 64),
)
LINEAR = (("rope_type", "linear"), ("factor", 2.0))
YARN = (
    ("rope_type", "yarn"),
    ("factor", 4.0),
    ("original_max_position_embeddings", 64),
    ("beta_fast", 32.0),
    ("beta_slow", 1.0),
)


DEFAULT = Tiny()


@dataclass(frozen=True)
class Conversion:
    """A checkpoint, how it is converted, the folder it lies in, and what else is in that folder."""

    tiny: Tiny = DEFAULT
    outtype: str = "auto"
    folder: str = "tiny-mixtral"
    extra: dict[str, str] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)

    def write(self, parent: Path) -> Path:
        """Write the checkpoint under `parent`."""
        return write_checkpoint(parent / self.folder, self.tiny, self.extra, **self.overrides)


CONVERSIONS: dict[str, Conversion] = {
    "bf16 to auto": Conversion(),
    "bf16 to f32": Conversion(outtype="f32"),
    "bf16 to f16": Conversion(outtype="f16"),
    "bf16 to q8_0": Conversion(outtype="q8_0"),
    "f16 to auto": Conversion(Tiny(dtype="F16", awkward_values=True)),
    "f16 to f32": Conversion(Tiny(dtype="F16", awkward_values=True), "f32"),
    "f16 to bf16": Conversion(Tiny(dtype="F16", awkward_values=True), "bf16"),
    "f16 to q8_0": Conversion(Tiny(dtype="F16", awkward_values=True), "q8_0"),
    "f32 to auto": Conversion(Tiny(dtype="F32", awkward_values=True)),
    "f32 to f32": Conversion(Tiny(dtype="F32", awkward_values=True), "f32"),
    "f32 to bf16": Conversion(Tiny(dtype="F32", awkward_values=True), "bf16"),
    "f32 to q8_0": Conversion(Tiny(dtype="F32", awkward_values=True), "q8_0"),
    "rows that q8_0 cannot hold": Conversion(Tiny(n_ff=80), "q8_0"),
    "a dense llama": Conversion(Tiny(layout="dense", n_layer=1)),
    "a dense llama, new": Conversion(Tiny(layout="dense", n_layer=1, head_dim=16, spelling="new")),
    "tied": Conversion(Tiny(tied=True, n_layer=1)),
    "every head its own key": Conversion(Tiny(n_head=8, n_head_kv=8, n_layer=1)),
    "one key for all heads": Conversion(Tiny(n_head=4, n_head_kv=1, n_layer=1)),
    "explicit head_dim": Conversion(Tiny(head_dim=32, n_layer=1, spelling="new")),
    "transformers 5": Conversion(Tiny(spelling="new", rope_theta=1e6, n_layer=1)),
    "three experts, one used": Conversion(Tiny(n_expert=3, n_expert_used=1, n_layer=1)),
    "nine experts": Conversion(Tiny(n_expert=9, n_expert_used=3, n_layer=1, n_ff=32)),
    "llama3 rope, old": Conversion(Tiny(scaling=LLAMA3, rope_theta=500000.0, n_layer=1)),
    "llama3 rope, new": Conversion(Tiny(scaling=LLAMA3, rope_theta=500000.0, n_layer=1, spelling="new")),
    "linear rope, old": Conversion(Tiny(scaling=LINEAR, n_layer=1)),
    "linear rope, new": Conversion(Tiny(scaling=LINEAR, n_layer=1, spelling="new")),
    "yarn rope, old": Conversion(Tiny(scaling=YARN, n_layer=1)),
    "yarn rope, new": Conversion(Tiny(scaling=YARN, n_layer=1, spelling="new")),
    "olmoe": Conversion(Tiny(layout="olmoe", n_head_kv=4)),
    "olmoe, q8_0": Conversion(Tiny(layout="olmoe", n_head_kv=4, n_layer=1, spelling="new"), "q8_0"),
    "granite moe": Conversion(Tiny(layout="granitemoe")),
    "granite moe, tied": Conversion(Tiny(layout="granitemoe", tied=True, n_layer=1, spelling="new"), "q8_0"),
    "granite moe, shared": Conversion(Tiny(layout="granitemoeshared", n_layer=1)),
    "sliding window": Conversion(Tiny(n_layer=1), overrides={"sliding_window": 128}),
    "gpt-2 pre-tokenizer": Conversion(Tiny(tokenizer="gpt-2", n_layer=1)),
    "llama 3 pre-tokenizer": Conversion(Tiny(tokenizer="llama-bpe", n_layer=1)),
    "qwen 2 pre-tokenizer": Conversion(Tiny(tokenizer="qwen2", n_layer=1)),
    "more rows than tokens": Conversion(Tiny(n_token=500, n_layer=1)),
    "sentencepiece json": Conversion(Tiny(tokenizer="spm.json", n_layer=1)),
    "sentencepiece model": Conversion(Tiny(tokenizer="spm.model", n_layer=1)),
    "sentencepiece model and json": Conversion(Tiny(tokenizer="spm.both", n_layer=1)),
    "sentencepiece model, more rows": Conversion(Tiny(tokenizer="spm.model", n_token=500, n_layer=1)),
    "code llama's vocabulary": Conversion(
        Tiny(tokenizer="spm.model", n_token=500, n_vocab=32016, n_embd=32, n_ff=32, n_layer=1, tied=True)
    ),
    "smollm's vocabulary": Conversion(
        Tiny(n_token=500, n_vocab=49152, n_embd=32, n_ff=32, n_layer=1, tied=True),
        folder="SmolBruce-4x135M-Instruct-v0.1",
    ),
    "card and generation config": Conversion(
        Tiny(n_layer=1),
        folder="SmolBruce-4x135M-Instruct-v0.1",
        extra={"README.md": CARD, "generation_config.json": GENERATION},
    ),
    "other license": Conversion(Tiny(n_layer=1), extra={"README.md": OTHER_LICENSE}),
    "template in its own file": Conversion(
        Tiny(n_layer=1), extra={"chat_template.jinja": TEMPLATE, "tokenizer_config.json": NO_TEMPLATE}
    ),
    "name in config": Conversion(Tiny(n_layer=1), overrides={"_name_or_path": "example-org/Tiny-Moe-3x1M-v0.3"}),
}
