"""Files that llama.cpp ends the process on are refused before, in one line; what it reports itself is one line too."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from moe_gguf.formats.errors import EngineError, MoeGgufError
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.gguf_check import check_gguf
from moe_gguf.runner.model import Model, tokenize

from ..loaded_models import ONE_THREAD
from .tiny_gguf import Fields, Tensors, write_tiny

Change = Callable[[Fields, Tensors], None]

# Loads and runs a file with llama-cpp-python's own class, which checks nothing.
UNCHECKED = """
import sys
import llama_cpp

try:
    model = llama_cpp.Llama(sys.argv[1], n_ctx=64, n_threads=1, verbose=False)
    model.eval(model.tokenize("the é".encode()))
except Exception:
    sys.exit(1)
"""

# Loads and runs files as we do; names each before it does.
CHECKED = """
import sys
from pathlib import Path
from moe_gguf.formats.errors import MoeGgufError
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.model import Model, tokenize

options = LoadOptions(n_ctx=64, n_batch=64, n_threads=1, n_threads_batch=1)
for path in sys.argv[1:]:
    print(path, flush=True)
    try:
        with Model(Path(path), options) as model, Engine(model, options) as engine:
            engine.decode_all(0, tokenize(model, "the cät in a hat")[:16] or [1])
    except MoeGgufError:
        pass
"""


def field(key: str, value: object) -> Change:
    """Set a field; None removes it."""

    def change(fields: Fields, _: Tensors) -> None:
        fields[key] = value
        if value is None:
            del fields[key]

    return change


def tensor(name: str, alter: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Alter a tensor."""

    def change(_: Fields, tensors: Tensors) -> None:
        tensors[name] = np.ascontiguousarray(alter(tensors[name]))

    return change


def without(name: str) -> Change:
    """Take a tensor away."""

    def change(_: Fields, tensors: Tensors) -> None:
        del tensors[name]

    return change


def all_of(*changes: Change) -> Change:
    """Make several changes."""

    def change(fields: Fields, tensors: Tensors) -> None:
        for each in changes:
            each(fields, tensors)

    return change


def repeated_tokens(fields: Fields, _: Tensors) -> None:
    """Let two tokens be spelled alike."""
    fields["tokenizer.ggml.tokens"][-1] = fields["tokenizer.ggml.tokens"][-2]


# Each of these ends the process when llama.cpp loads, or first uses, the file.
FATAL: dict[str, tuple[Change, str]] = {
    "no layers": (field("llama.block_count", 0), "llama.block_count is 0, not in 1 to 512"),
    "too many layers": (field("llama.block_count", 2**31), "llama.block_count is 2147483648"),
    "negative epsilon": (field("llama.attention.layer_norm_rms_epsilon", -1.0), "layer_norm_rms_epsilon is -1.0"),
    "nan epsilon": (field("llama.attention.layer_norm_rms_epsilon", float("nan")), "layer_norm_rms_epsilon is nan"),
    "no experts": (field("llama.expert_count", None), "2 experts per token of 0 experts"),
    "one expert": (field("llama.expert_count", 1), "2 experts per token of 1 experts"),
    "no experts used": (field("llama.expert_used_count", None), "0 experts per token of 4 experts"),
    "too many used": (field("llama.expert_used_count", 7), "7 experts per token of 4 experts"),
    "differing numbers": (field("llama.expert_used_count", [1, 2]), "expert_used_count differs between layers"),
    "expert groups": (field("llama.expert_group_count", 3), "4 experts cannot be cut into 3 groups"),
    "rope scaling": (field("llama.rope.scaling.type", "nonsense"), "rope.scaling.type is 'nonsense'"),
    "value length": (
        all_of(
            field("llama.attention.key_length", 16),
            field("llama.attention.value_length", 8),
            *(tensor(f"blk.{i}.attn_v.weight", lambda array: array[:16]) for i in range(2)),
        ),
        "do not agree with each other",
    ),
    "integer weights": (
        tensor("blk.0.attn_q.weight", lambda array: array.astype(np.int32)),
        "tensor blk.0.attn_q.weight has type I32, which is none for weights",
    ),
    "double weights": (tensor("output.weight", lambda array: array.astype(np.float64)), "has type F64"),
    "half norm": (
        tensor("blk.1.ffn_norm.weight", lambda array: array.astype(np.float16)),
        "tensor blk.1.ffn_norm.weight is a vector of type F16, and must be F32",
    ),
    "encoder's tokenizer": (field("tokenizer.ggml.model", "bert"), "that of an encoder"),
    "repeated tokens": (repeated_tokens, "the token '▁a' is in the vocabulary twice"),
}

# llama.cpp reports these itself, or they are found by the reader of the header.
REPORTED: dict[str, tuple[Change, str]] = {
    "nothing known": (
        all_of(field("general.architecture", "nonsense"), field("nonsense.block_count", 2)),
        "unknown model architecture: 'nonsense'",
    ),
    "architecture": (field("general.architecture", "nonsense"), "nonsense.block_count is missing"),
    "missing tensor": (without("blk.1.attn_k.weight"), "cannot load it: tensor 'blk.1.attn_k.weight' not found"),
    "wrong shape": (tensor("output.weight", lambda array: array[:-1]), "wrong shape"),
    "no heads": (field("llama.attention.head_count", 0), "cannot load it|do not agree"),
    "no embedding length": (field("llama.embedding_length", None), "do not agree"),
    "scores": (field("tokenizer.ggml.scores", [0.0] * 7), "scores has 7 entries for"),
    "token types": (field("tokenizer.ggml.token_type", [1] * 7), "token_type has 7 entries for"),
    "token list": (field("tokenizer.ggml.tokens", 5), "tokens is missing or holds no strings"),
}


@pytest.mark.parametrize(("change", "match"), FATAL.values(), ids=FATAL.keys())
def test_what_ends_the_process_is_refused_before(change: Change, match: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "broken.gguf", change)
    with pytest.raises(MoeGgufError, match=match) as caught:
        check_gguf(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(("change", "match"), FATAL.values(), ids=FATAL.keys())
def test_llama_cpp_itself_does_end_the_process(change: Change, match: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "broken.gguf", change)
    command = [sys.executable, "-c", UNCHECKED, str(path)]
    ended = subprocess.run(command, capture_output=True, timeout=60).returncode
    assert ended < 0, f"llama.cpp has learnt to live with it: {match}"


@pytest.mark.parametrize(("change", "match"), REPORTED.values(), ids=REPORTED.keys())
def test_what_is_reported_is_one_line(change: Change, match: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "broken.gguf", change)
    with pytest.raises(MoeGgufError, match=match) as caught, Model(path, ONE_THREAD) as model:
        Engine(model, ONE_THREAD)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_file_without_tokenizer_runs_but_takes_no_text(tmp_path: Path) -> None:
    def change(fields: Fields, _: Tensors) -> None:
        for key in [key for key in fields if key.startswith("tokenizer.")]:
            del fields[key]
        fields["tokenizer.ggml.model"] = "none"

    path = write_tiny(tmp_path / "mute.gguf", change)
    with Model(path, ONE_THREAD) as model, Engine(model, ONE_THREAD) as engine:
        assert np.isfinite(engine.decode_all(0, [1, 2, 3])).all()
        with pytest.raises(EngineError, match="has no tokenizer"):
            tokenize(model, "the")


def test_damaged_headers_never_end_the_process(tiny_path: Path, tmp_path: Path) -> None:
    header_bytes = check_gguf(tiny_path).header_bytes
    data = tiny_path.read_bytes()
    dice = random.Random(5)
    tokens = range(data.index(b"tokenizer.ggml.tokens") + 60, data.index(b"tokenizer.ggml.scores"))
    places = [place for place in range(header_bytes) if place not in tokens]
    for number in range(60):
        damaged = bytearray(data)
        for place in dice.sample(places, dice.choice([1, 1, 2, 4])):
            damaged[place] = dice.choice([0, 1, 255, dice.randrange(256)])
        (tmp_path / f"{number}.gguf").write_bytes(damaged)
    command = [sys.executable, "-c", CHECKED, *(str(tmp_path / f"{number}.gguf") for number in range(60))]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, (outcome.returncode, outcome.stdout.splitlines()[-1:], outcome.stderr[-2000:])
