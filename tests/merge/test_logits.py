"""Recipes straight to GGUF, run by llama.cpp, against the logits of mergekit's merge in transformers (goldens)."""

import json
from pathlib import Path

import numpy as np
import pytest
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.losses import all_logits
from moe_gguf.runner.model import Model

from .tiny_gguf import write_gguf_of

MERGES = json.loads((Path(__file__).parent / "golden" / "mergekit.json").read_text())
TOKENS = [5, 77, 140, 9, 301, 42, 488, 200]
OPTIONS = LoadOptions(n_ctx=64, n_ubatch=64, flash_attn="off", cache_type_k="f32", cache_type_v="f32", n_threads=1)


@pytest.mark.parametrize(
    "name", ["mixtral-mistral", "mixtral-llama-tied", "mixtral-llama-f16", "mixtral-llama-residual", "qwen3"]
)
def test_llama_cpp_gives_the_logits_of_transformers(tmp_path: Path, name: str) -> None:
    path = write_gguf_of(tmp_path, name)
    with Model(path, OPTIONS) as model, Engine(model, OPTIONS) as engine:
        logits = all_logits(engine, 0, TOKENS)[-1]
    golden = np.array(MERGES[name]["logits"])
    assert np.abs(golden).max() > 1
    np.testing.assert_allclose(logits, golden, atol=2e-4)
