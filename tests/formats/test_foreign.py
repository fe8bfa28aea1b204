"""Checkpoints that other programs left: read when they are the same weights, else called what they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moe_gguf.convert.build_plan import build_plan
from moe_gguf.formats.checkpoint import open_checkpoint

from ..checkpoints import Stored, Tiny, stored, tensors, write_checkpoint, write_safetensors
from ..refusal import refusal

DENSE = Tiny(n_layer=1, n_embd=64, n_ff=64, n_vocab=512, layout="dense", dtype="F32")
Q = "model.layers.0.self_attn.q_proj"
Change = Callable[[dict[str, Stored]], dict[str, Stored]]


def checkpoint(folder: Path, change: Change, **config: Any) -> Path:
    """Write a dense checkpoint with other tensors than its own."""
    write_checkpoint(folder, DENSE, **config)
    write_safetensors(folder / "model.safetensors", change(tensors(DENSE)))
    return folder


def named(prefix: str, head: str = "") -> Change:
    """Return how to put another prefix in the place of `model.`, and one before the head."""
    return lambda stored: {
        (head + name if name == "lm_head.weight" else prefix + name.removeprefix("model.")): tensor
        for name, tensor in stored.items()
    }


NAMES: dict[str, Change] = {
    "without a prefix": named(""),
    "a language model": named("language_model.model.", "language_model."),
    "a language model within": named("model.language_model."),
    "compiled": named("_orig_mod.model.", "_orig_mod."),
    "compiled layer by layer": lambda own: {name.replace(".0.", ".0._orig_mod."): t for name, t in own.items()},
    "parallel": named("module.model.", "module."),
    "parallel and compiled": named("module._orig_mod.model.", "module._orig_mod."),
    "sharded": lambda own: {name.replace("self_attn", "_fsdp_wrapped_module.self_attn"): t for name, t in own.items()},
    "unloaded from PEFT": named("base_model.model.model.", "base_model.model."),
}


@pytest.mark.parametrize("case", NAMES)
def test_other_names_of_the_same_weights_are_read(case: str, tmp_path: Path) -> None:
    plain = open_checkpoint(write_checkpoint(tmp_path / "plain", DENSE)).source
    other = open_checkpoint(checkpoint(tmp_path / "other", NAMES[case]))
    assert set(other.source.tensors) == set(plain.tensors)
    for name, info in plain.tensors.items():
        assert np.array_equal(other.source.read_rows(name, 0, info.n_rows), plain.read_rows(name, 0, info.n_rows))
    assert build_plan(other).tensors == build_plan(open_checkpoint(tmp_path / "plain")).tensors


def with_parts(*parts: str, dtype: str = "U8", keep: bool = False) -> Change:
    """Return how to put parts of a quantized weight in the place of q_proj's."""

    def change(own: dict[str, Stored]) -> dict[str, Stored]:
        size = {"U8": 1, "I8": 1, "I32": 4, "U32": 4, "F32": 4, "F8_E4M3": 1}[dtype]
        added: dict[str, Stored] = {f"{Q}{part}": (dtype, (2, 4), bytes(8 * size)) for part in parts}
        return {name: tensor for name, tensor in own.items() if keep or name != f"{Q}.weight"} | added

    return change


def lora(own: dict[str, Stored], *, base_layer: bool) -> dict[str, Stored]:
    added = {f"{Q}.lora_{letter}.default.weight": stored(np.ones((2, 4), np.float32), "F32") for letter in "AB"}
    return {
        (name.replace("q_proj.", "q_proj.base_layer.") if base_layer else name): t for name, t in own.items()
    } | added


BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
BNB8 = {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}
REFUSED: dict[str, tuple[Change, dict[str, Any], str]] = {
    "bitsandbytes 4": (with_parts(".weight", ".weight.absmax", ".weight.quant_map"), BNB4, "bitsandbytes (4 bits)"),
    "bitsandbytes 8": (with_parts(".weight", ".SCB", dtype="I8"), BNB8, "by bitsandbytes (8 bits)"),
    "bitsandbytes, unsaid": (with_parts(".weight", ".weight.absmax"), {}, "by bitsandbytes"),
    "AWQ": (with_parts(".qweight", ".qzeros", ".scales", dtype="I32"), {"quant_method": "awq", "bits": 4}, "AWQ (4"),
    "AWQ, unsaid": (with_parts(".qweight", ".qzeros", ".scales", dtype="I32"), {}, "by AWQ"),
    "GPTQ of 3 bits": (with_parts(".qweight", ".g_idx", dtype="I32"), {"quant_method": "gptq", "bits": 3}, "3 bits"),
    "GPTQ in parts": (
        with_parts(".qweight", ".g_idx", dtype="I32"),
        {"quant_method": "gptq", "bits": 4},
        "q_proj.qzero",
    ),
    "NVFP4": (
        with_parts(".weight_packed", ".weight_scale"),
        {
            "quant_method": "compressed-tensors",
            "format": "nvfp4-pack-quantized",
            "config_groups": {"a": {"weights": {}}},
        },
        "by compressed-tensors (nvfp4-pack-quantized)",
    ),
    "MLX": (with_parts(".weight", ".scales", ".biases", dtype="U32"), {}, "by MLX"),
    "MXFP4": (with_parts("_blocks", "_scales"), {}, "by MXFP4"),
    "HQQ": (with_parts(".weight"), {"quant_method": "hqq"}, "by HQQ"),
    "something new": (with_parts(".weight"), {"quant_method": "tomorrow"}, "by tomorrow"),
    "bytes": (with_parts(".weight"), {}, "by another program"),
    "FP8 with scales that do not fit": (
        with_parts(".weight", ".weight_scale_inv", dtype="F8_E4M3"),
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "does not fit",
    ),
    "an unmerged adapter": (lambda own: lora(own, base_layer=True), {}, "a PEFT adapter that is not merged into it"),
    "a leftover adapter": (lambda own: lora(own, base_layer=False), {}, "a PEFT adapter that is not merged into it"),
    "an adapter": (lambda own: lora({}, base_layer=False), {}, "weights are a LoRA adapter"),
    "ZeRO-3": (lambda own: own | {"model.embed_tokens.weight": ("F32", (0,), b"")}, {}, "zero_to_fp32.py"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_called_what_it_is(case: str, tmp_path: Path) -> None:
    change, quantization, words = REFUSED[case]
    config = {"quantization_config": quantization} if quantization else {}
    line = refusal(checkpoint(tmp_path / "model", change, **config), open_checkpoint)
    assert words in line and str(tmp_path) in line
    assert "is the checkpoint whole" not in line or case == "GPTQ in parts"


def test_the_model_that_was_quantized_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", with_parts(".qweight", dtype="I32"))
    (folder / "README.md").write_text("---\nbase_model: us/plain\n---\n")
    assert "convert the model that it was made of (us/plain)" in refusal(folder, open_checkpoint)


def test_a_config_that_says_quantized_of_plain_weights_is_no_matter(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", dict, quantization_config=BNB4)
    assert len(build_plan(open_checkpoint(folder)).tensors) == 12


def test_names_of_another_architecture_are_shown(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", lambda own: {f"transformer.h.{i}.w": t for i, t in enumerate(own.values())})
    line = refusal(folder, lambda path: build_plan(open_checkpoint(path)))
    assert "names such as transformer.h.0.w" in line
