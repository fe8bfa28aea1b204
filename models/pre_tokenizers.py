"""The pre-tokenizer that a file names, which cuts texts before tokens are looked up: metadata in, warnings out."""

from collections.abc import Mapping
from typing import Any

from gguf.constants import Keys

# What llama.cpp knows (src/llama-vocab.cpp, llama_vocab::impl::load), as of llama-cpp-python 0.3.36.
# fmt: off
KNOWN = frozenset({
    "a.x-4.0", "afmoe", "bailingmoe", "bailingmoe2", "bloom", "chameleon", "chatglm-bpe", "codeshell",
    "cohere2moe", "command-r", "dbrx", "deepseek-coder", "deepseek-llm", "deepseek-r1-qwen", "deepseek-v3",
    "default", "exaone", "exaone-moe", "exaone4", "f2llmv2", "falcon", "falcon-h1", "falcon3", "gemma4",
    "gigachat", "glm4", "glm5", "gpt-2", "gpt-4o", "gpt3-finnish", "granite-docling",
    "granite-embed-multi-311m", "granite-embed-multi-97m", "grok-2", "hunyuan", "hunyuan-dense", "hy_v4",
    "jais", "jais-2", "jina-de", "jina-es", "jina-v1-en", "jina-v2-code", "jina-v2-de", "jina-v2-es",
    "jina-v5-nano", "joyai-llm", "kanana2", "kimi-k2", "kormo", "laguna", "lfm2", "llada-moe", "llama-bpe",
    "llama-v3", "llama3", "llama4", "megrez", "mellum", "mellum2", "midm-2.0", "minerva-7b", "minicpm5",
    "minimax-m2", "modern-bert", "mpt", "olmo", "phi-2", "pixtral", "poro-chat", "qwen2", "qwen35", "refact",
    "roberta-bpe", "sarvam-moe", "seed-coder", "smaug-bpe", "smollm", "solar-open", "spark2_5", "stablelm2",
    "starcoder", "superbpe", "talkie", "tekken", "tiny_aya", "trillion", "ufakzeka", "viking", "whitespace",
    "youtu",
})
# fmt: on


def missing_pre_tokenizer(metadata: Mapping[str, Any]) -> str | None:
    """Return what is to be said of a byte-level vocabulary without a pre-tokenizer, which llama.cpp runs."""
    if metadata.get(Keys.Tokenizer.MODEL) != "gpt2" or metadata.get(Keys.Tokenizer.PRE):
        return None
    return (
        "the file names no pre-tokenizer (tokenizer.ggml.pre), so llama.cpp cuts texts by its default one: "
        "the quality of answers suffers; convert the model again, or take a newer file"
    )


def pre_tokenizer_warning(metadata: Mapping[str, Any]) -> str | None:
    """Return the same, or what is to be said of a pre-tokenizer that llama.cpp does not know and refuses."""
    if metadata.get(Keys.Tokenizer.MODEL) != "gpt2":
        return None
    pre = metadata.get(Keys.Tokenizer.PRE)
    if pre and pre not in KNOWN:
        return (
            f"llama.cpp does not know the pre-tokenizer {str(pre)[:40]!r} (tokenizer.ggml.pre) and refuses the file; "
            "use a newer llama.cpp, or convert the model again"
        )
    return missing_pre_tokenizer(metadata)
