"""A finished GGUF file in, what is wrong with it out: the last check before a file gets its name."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..formats.errors import MoeGgufError
from .engine import Engine
from .load_options import LoadOptions
from .losses import all_logits
from .model import Model, tokenize

SMALLEST = LoadOptions(n_ctx=256, n_batch=256, n_ubatch=32, n_gpu_layers=0, devices=(), repack=False)
DECODED = 16


def verify_gguf(
    path: Path, probe_text: str | None = None, expected_ids: Sequence[int] | None = None, decode: bool = True
) -> list[str]:
    """Load a file in llama.cpp, decode once, and return what is wrong; an empty list is a good file.

    With a probe text its tokens, without those that are added to every prompt, must be `expected_ids`: the source
    tokenizer's. llama.cpp maps the whole file and reads it ahead; without `decode` it loads the vocabulary alone.
    """
    try:
        with Model(path, replace(SMALLEST, vocab_only=not decode)) as model:
            tokens = tokenize(model, probe_text or "", add_special=False, parse_special=True)
            problems = []
            if expected_ids is not None:
                problems += compare_tokens(tokens, list(expected_ids))
            if decode:
                with Engine(model, SMALLEST) as engine:
                    problems += check_logits(engine, (tokens or [0])[:DECODED])
            return problems
    except MoeGgufError as error:
        return [str(error)]


def check_logits(engine: Engine, tokens: Sequence[int]) -> list[str]:
    """Decode tokens and say which of the logits are not finite."""
    logits = all_logits(engine, 0, tokens)
    broken = np.argwhere(~np.isfinite(logits))
    if not len(broken):
        return []
    row, token = (int(value) for value in broken[0])
    return [
        f"{len(broken)} of {logits.size} logits are not finite, first that of token {token} at position {row}; "
        "a weight is broken or overflows"
    ]


def compare_tokens(ours: Sequence[int], expected: Sequence[int]) -> list[str]:
    """Say where llama.cpp's tokens differ from the source tokenizer's."""
    if list(ours) == list(expected):
        return []
    at = next((i for i, pair in enumerate(zip(ours, expected, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(ours), len(expected)) if at is None else at
    return [
        f"llama.cpp tokenizes the probe text otherwise than the source's tokenizer: from token {at} "
        f"{list(ours[at : at + 4])} instead of {list(expected[at : at + 4])} ({len(ours)} and {len(expected)} tokens)"
    ]
