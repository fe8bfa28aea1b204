"""llama.cpp computes the same logits from our F32 GGUF as transformers does from the checkpoint."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
from moe_gguf.formats.llamacpp import llama

from ..checkpoints import Tiny, write_checkpoint
from ..command import convert
from ..oracles.logits_cases import LOGITS, TOKENS, UPCYCLED
from ..oracles.transformers_logits import GOLDEN

EXPECTED = np.load(GOLDEN)
TOLERANCE = 1e-4


def decode(path: Path, tokens: tuple[int, ...]) -> np.ndarray:
    """Return the logits after each token, [n_tokens, n_vocab], with keys and values kept in float32."""
    api = llama()
    settings = api.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = api.llama_model_load_from_file(str(path).encode(), settings)
    assert model
    options = api.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = 64, 64, 64
    options.type_k = options.type_v = 0
    options.flash_attn_type = 0
    context = api.llama_init_from_model(model, options)
    assert context
    n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    batch = api.llama_batch_init(len(tokens), 0, 1)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, True
        batch.seq_id[i][0] = 0
    batch.n_tokens = len(tokens)
    assert api.llama_decode(context, batch) == 0
    flat = ctypes.cast(api.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
    result = np.ctypeslib.as_array(flat, (len(tokens), n_vocab)).copy()
    api.llama_batch_free(batch)
    api.llama_free(context)
    api.llama_model_free(model)
    return result


def our_logits(folder: Path, tiny: Tiny, outtype: str = "f32") -> np.ndarray:
    """Convert a checkpoint and run it."""
    target = folder / "out.gguf"
    outcome = convert(write_checkpoint(folder / "tiny", tiny), target, "--outtype", outtype)
    assert outcome.status == 0, outcome.stderr
    return decode(target, TOKENS)


@pytest.mark.parametrize("name", LOGITS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    assert np.abs(our_logits(tmp_path, LOGITS[name]) - EXPECTED[name]).max() < TOLERANCE


def test_identical_experts_give_the_dense_model(tmp_path: Path) -> None:
    assert np.abs(our_logits(tmp_path, UPCYCLED) - EXPECTED["dense"]).max() < TOLERANCE


def test_the_tolerance_tells_models_apart() -> None:
    assert np.abs(EXPECTED["1 of 3"] - EXPECTED["1 of 4"]).max() > 100 * TOLERANCE
