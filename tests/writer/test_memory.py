"""Memory stays bounded whatever the model's size: 2 GB of weights, one output or three, as the system counts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from moe_gguf.formats.positional import PositionalFile
from moe_gguf.formats.safetensors import SafetensorsFile, pack_header, stored_bytes
from moe_gguf.formats.source import TensorInfo

from ..checkpoints import EXPERT, LAYER, Tiny, config
from ..tiny_tokenizers import write_tokenizer

LARGE = Tiny(n_layer=5, n_embd=2048, n_ff=7168, n_head=16, n_head_kv=4, n_expert=4, n_vocab=512)
MB = 10**6


def shapes(tiny: Tiny) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a Mixtral of the old layout."""
    n_embd, n_kv = tiny.n_embd, tiny.n_head_kv * tiny.n_rot
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (tiny.n_vocab, n_embd)}
    for layer in range(tiny.n_layer):
        prefix = LAYER.format(layer)
        parts = {"q": (n_embd, n_embd), "k": (n_kv, n_embd), "v": (n_kv, n_embd), "o": (n_embd, n_embd)}
        found |= {f"{prefix}self_attn.{part}_proj.weight": shape for part, shape in parts.items()}
        found |= {f"{prefix}{norm}.weight": (n_embd,) for norm in ("input_layernorm", "post_attention_layernorm")}
        found[f"{prefix}block_sparse_moe.gate.weight"] = (tiny.n_expert, n_embd)
        for expert in range(tiny.n_expert):
            for part, shape in {
                "w1": (tiny.n_ff, n_embd),
                "w2": (n_embd, tiny.n_ff),
                "w3": (tiny.n_ff, n_embd),
            }.items():
                found[EXPERT.format(layer, expert, part)] = shape
    return found | {"model.norm.weight": (n_embd,), "lm_head.weight": (tiny.n_vocab, n_embd)}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of 1.9 GB that takes little disk: random rows here and there, holes between."""
    folder = tmp_path_factory.mktemp("large") / "Large"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(LARGE)))
    write_tokenizer(folder, LARGE.tokenizer, LARGE.n_vocab)
    infos = [TensorInfo(name, "BF16", shape, "") for name, shape in shapes(LARGE).items()]
    header = pack_header(infos)
    path = folder / "model.safetensors"
    dice = np.random.default_rng(0)
    with PositionalFile(path, os.O_RDWR | os.O_CREAT) as file:
        at = len(header)
        file.write(0, header)
        for info in infos:
            file.write(at, dice.integers(0x3C00, 0x3D00, min(stored_bytes(info) // 2, 2**15), np.uint16))
            at += stored_bytes(info)
        os.ftruncate(file.descriptor, at)
    assert at > 1800 * MB and len(SafetensorsFile(path).tensors) == len(infos)
    return folder


# Linux counts what a process held before it became another program, so one of a few MB starts the command.
MEASURED = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak(*arguments: str | Path) -> float:
    """Run `moe-gguf`; return the most memory that it held at a time, mapped files included, in MB."""
    command = [sys.executable, "-c", "from moe_gguf.cli import main; main()", *map(str, arguments)]
    outcome = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return int(outcome.stdout) * (1 if sys.platform == "darwin" else 1024) / MB


@pytest.mark.slow
@pytest.mark.parametrize("outtype", ["bf16", "f16", "f32", "q8_0"])
def test_a_conversion_takes_600_mb_at_most(outtype: str, large: Path, tmp_path: Path) -> None:
    assert peak("convert", large, "-o", tmp_path / "x.gguf", "--outtype", outtype, "--no-verify") <= 600


@pytest.mark.slow
def test_three_outputs_in_one_pass_take_700_mb_at_most(large: Path, tmp_path: Path) -> None:
    types = ("--type", "Q4_K_M", "--type", "Q5_K_M", "--type", "Q8_0")
    assert peak("quantize", large, *types, "-o", tmp_path) <= 700


@pytest.mark.slow
def test_a_gguf_is_quantized_within_the_same_memory(large: Path, tmp_path: Path) -> None:
    assert peak("convert", large, "-o", tmp_path / "large.gguf", "--no-verify") <= 600
    types = ("--type", "Q4_K_M", "--type", "Q6_K")
    assert peak("quantize", tmp_path / "large.gguf", *types, "-o", tmp_path) <= 700
