"""Families whose graph depends on their routing: what is written, what is refused, what the commands say of it.

Their logits: tests/merge/test_routing.py.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.quantize.file_types import parse_file_type
from safetensors.numpy import load_file, save_file

from ..command import convert, moe_gguf
from ..merge.cases import Case, write_case
from ..merge.tiny_models import LLAMA3_ROPE, Dense
from ..quantize.oracle import quantize_file

WIDE = Dense(n_embd=256, n_ff=512, tied=True, rope=tuple(LLAMA3_ROPE.items()))
TYPES = ("Q2_K", "Q4_K_M", "Q6_K", "IQ4_XS", "Q8_0")
MEASURED = re.compile(r"warning: \S+: llama\.cpp runs this file without renormalizing .* differ by [\d.]+ % .*\n")


def recipe(folder: Path, case: Case) -> Path:
    """Write a merge whose gates are drawn by a seed, with no prompts."""
    path = write_case(folder, case)
    document = json.loads(path.read_text()) | {"gate_mode": "random", "experts_per_token": 2}
    path.write_text(json.dumps(document))
    return path


def checkpoint(folder: Path, case: Case, **overrides: Any) -> Path:
    """Merge into a checkpoint folder and change its config.json."""
    target = folder / "merged"
    outcome = moe_gguf("merge", recipe(folder, case), "-o", target, "-q")
    assert outcome.status == 0, outcome.stderr
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | overrides))
    return target


def test_granitemoe_is_quantized_as_llama_cpp_quantizes_it(tmp_path: Path) -> None:
    source = recipe(tmp_path, Case(WIDE, architecture="deepseek", shared=True))
    bf16 = tmp_path / "bf16.gguf"
    assert convert(source, bf16).status == 0
    assert read_gguf(bf16).architecture == "granitemoe"
    arguments = [part for name in TYPES for part in ("--type", name)]
    outcome = moe_gguf("quantize", source, *arguments, "-o", f"{tmp_path / 'out'}/", "-q", "-t", "1", "--verify")
    assert outcome.status == 0, outcome.stderr
    for name in TYPES:
        stock = tmp_path / f"{name}.gguf"
        quantize_file(bf16, stock, parse_file_type(name), n_threads=1)
        (ours,) = (tmp_path / "out").glob(f"*-{name}.gguf")
        assert ours.read_bytes() == stock.read_bytes(), name


def test_shared_experts_are_named_where_they_are_counted(tmp_path: Path) -> None:
    for shared in (True, False):
        folder = tmp_path / str(shared)
        assert (
            convert(recipe(folder, Case(Dense(), architecture="deepseek", shared=shared)), folder / "a.gguf").status
            == 0
        )
        inspected, planned = (moe_gguf(verb, folder / "a.gguf", "-q").stdout for verb in ("inspect", "fit"))
        assert ("shared experts, attention, embeddings and norms exist once (" in inspected) is shared
        assert ("attention, norms, routers, shared experts 0-1 " in planned) is shared
        assert "embeddings and norms exist once (" in inspected and "attention, norms, routers" in planned


def test_experts_may_be_narrower_than_the_dense_layers_that_are_not_there(tmp_path: Path) -> None:
    for shared, graph in ((True, "granitemoe"), (False, "llama")):
        folder = tmp_path / graph
        source = checkpoint(folder, Case(Dense(), architecture="deepseek", shared=shared), intermediate_size=1000)
        outcome = moe_gguf("convert", source, "-o", folder / "out.gguf", "-q")
        assert (outcome.status, outcome.stderr) == (0, "")
        metadata = read_gguf(folder / "out.gguf").metadata
        assert metadata["general.architecture"] == graph
        assert metadata[f"{graph}.feed_forward_length"] == Dense().n_ff


@pytest.mark.parametrize("overrides", [{"norm_topk_prob": False}, {"num_experts_per_tok": 1}])
def test_a_deepseek_that_does_not_renormalize_stays_one(overrides: dict[str, Any], tmp_path: Path) -> None:
    source = checkpoint(tmp_path, Case(Dense(), architecture="deepseek", shared=True), **overrides)
    outcome = moe_gguf("convert", source, "-o", tmp_path / "out.gguf", "-q")
    assert (outcome.status, outcome.stderr) == (0, "")
    metadata = read_gguf(tmp_path / "out.gguf").metadata
    assert metadata["general.architecture"] == "deepseek"
    assert metadata["deepseek.rope.scaling.type"] == "none"
    assert "deepseek.expert_weights_norm" not in metadata


def test_a_trained_deepseek_with_a_dense_layer_stays_one(tmp_path: Path) -> None:
    dense = Case(Dense(dtype="F32"), architecture="deepseek", shared=True)
    source = checkpoint(tmp_path, dense, norm_topk_prob=False, first_k_dense_replace=1)
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if name.startswith("model.layers.0.mlp.")]:
        array = tensors.pop(name)
        if ".shared_experts." in name:
            tensors[name.replace(".shared_experts", "")] = array
    save_file(tensors, source / "model.safetensors")
    outcome = moe_gguf("convert", source, "-o", tmp_path / "out.gguf", "-q")
    assert (outcome.status, outcome.stderr) == (0, "")
    file = read_gguf(tmp_path / "out.gguf")
    assert (file.architecture, file.metadata["deepseek.leading_dense_block_count"]) == ("deepseek", 1)
    assert "blk.0.ffn_gate.weight" in file.tensors and "blk.1.ffn_gate_shexp.weight" in file.tensors


def test_a_deepseek_keeps_its_rope_scaling(tmp_path: Path) -> None:
    scaling = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "norm_topk_prob": False}
    source = checkpoint(tmp_path, Case(Dense(), architecture="deepseek", shared=True), **scaling)
    assert convert(source, tmp_path / "out.gguf").status == 0
    metadata = read_gguf(tmp_path / "out.gguf").metadata
    assert metadata["deepseek.rope.scaling.type"] == "linear"
    assert metadata["deepseek.rope.scaling.factor"] == 2.0


def test_a_rope_that_the_graph_does_not_have_is_refused(tmp_path: Path) -> None:
    source = recipe(tmp_path, Case(Dense(rope=tuple(LLAMA3_ROPE.items())), architecture="qwen", shared=True))
    outcome = convert(source, tmp_path / "out.gguf")
    assert outcome.status == 1 and outcome.stderr.count("\n") == 1
    assert "qwen2moe graph has no rope scaling of the kind llama3" in outcome.stderr
    assert not (tmp_path / "out.gguf").exists()


def test_a_tied_qwen2moe_has_the_output_that_llama_cpp_asks_for(tmp_path: Path) -> None:
    source = recipe(tmp_path, Case(Dense("qwen2", tied=True), shared=True))
    assert moe_gguf("convert", source, "-o", tmp_path / "out.gguf", "-q").status == 0
    tensors = read_gguf(tmp_path / "out.gguf").tensors
    assert tensors["output.weight"].shape == tensors["token_embd.weight"].shape


def test_what_the_graph_does_otherwise_is_said_when_planned_and_measured_when_written(tmp_path: Path) -> None:
    source, target = recipe(tmp_path, Case(Dense("qwen2"), shared=True)), tmp_path / "out.gguf"
    planned = moe_gguf("convert", source, "-o", target, "-q", "--dry-run")
    assert "does not renormalize the weights" in planned.stderr and not MEASURED.search(planned.stderr)
    assert convert(source, target).stderr == planned.stderr
    measured = moe_gguf("convert", source, "-o", target, "-q", "--force").stderr
    assert MEASURED.sub("", measured) == planned.stderr and MEASURED.search(measured)


def test_a_file_remembers_what_was_asked_for(tmp_path: Path) -> None:
    source, target = recipe(tmp_path, Case(Dense("qwen2"), shared=True)), tmp_path / "out.gguf"
    assert convert(source, target).status == 0
    assert read_gguf(target).metadata["qwen2moe.expert_weights_norm"] is True
    arguments = ("quantize", target, "--type", "Q8_0", "-o", tmp_path / "q8_0.gguf", "-q")
    assert moe_gguf(*arguments).stderr == ""
    assert MEASURED.fullmatch(moe_gguf(*arguments, "--verify", "--force").stderr)
    assert read_gguf(tmp_path / "q8_0.gguf").metadata["qwen2moe.expert_weights_norm"] is True


def test_all_experts_chosen_need_no_warning(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, Case(Dense("qwen2"), shared=True), num_experts_per_tok=3)
    outcome = moe_gguf("convert", source, "-o", tmp_path / "out.gguf", "-q")
    assert (outcome.status, outcome.stderr) == (0, "")
