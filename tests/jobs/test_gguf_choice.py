"""The right file of a folder is told by what is in the files; what is no model is called what it is."""

import os
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from moe_gguf.formats.errors import GgufError
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.formats.llamacpp import llama
from moe_gguf.jobs.gguf_choice import best_gguf
from moe_gguf.jobs.sources import resolve_gguf
from moe_gguf.models.gguf_kind import GgufKind, kind_of_gguf

from ..command import moe_gguf
from ..runner.tiny_gguf import N_EMBD, Fields, Tensors, vocabulary, write_tiny


def write(path: Path, architecture: str, fields: dict[str, object], tensors: dict[str, tuple[int, ...]]) -> Path:
    """Write a GGUF file with the gguf package."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in fields.items():
        writer.add_array(key, value) if isinstance(value, list) else writer.add_string(key, str(value))
    for name, shape in tensors.items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# What llama.cpp's converters and tools write (conversion/, tools/imatrix), by their keys and tensors.
BESIDE: dict[GgufKind, tuple[str, dict[str, object], dict[str, tuple[int, ...]]]] = {
    GgufKind.PROJECTOR: ("clip", {"general.type": "mmproj"}, {"v.patch_embd.weight": (8, 8), "mm.0.weight": (8, 8)}),
    GgufKind.IMATRIX: (
        "",
        {"general.type": "imatrix", "imatrix.datasets": ["a.txt"]},
        {"blk.0.attn_q.weight.in_sum2": (1, 8)},
    ),
    GgufKind.ADAPTER: (
        "llama",
        {"general.type": "adapter", "adapter.type": "lora"},
        {"blk.0.attn_q.weight.lora_a": (4, N_EMBD), "blk.0.attn_q.weight.lora_b": (N_EMBD, 4)},
    ),
    GgufKind.CONTROL: ("controlvector", {"controlvector.model_hint": "llama"}, {"direction.1": (N_EMBD,)}),
    GgufKind.VOCABULARY: ("llama", {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": vocabulary()[0]}, {}),
    GgufKind.DRAFT: ("eagle3", {}, {"fc.weight": (8, 8)}),
}


def beside(folder: Path, kind: GgufKind) -> Path:
    """Write a file that lies beside models, under a name that comes first and sounds best."""
    return write(folder / "A-Q4_K_M.gguf", *BESIDE[kind])


def halved(fields: Fields, tensors: Tensors) -> None:
    """Make a smaller model of the same family, as drafts are."""
    fields["llama.block_count"] = 1
    for name in [name for name in tensors if name.startswith("blk.1.")]:
        del tensors[name]
    for name in [name for name in tensors if "_exps" in name]:
        del tensors[name]


@pytest.mark.parametrize("kind", BESIDE)
def test_what_lies_beside_a_model_is_never_taken_for_it(kind: GgufKind, tmp_path: Path) -> None:
    other = beside(tmp_path, kind)
    assert kind_of_gguf(read_gguf(other)) is kind
    with pytest.raises(GgufError, match=r"no model in this folder: A-Q4_K_M\.gguf is an? |is the draft"):
        resolve_gguf(tmp_path, None)
    model = write_tiny(tmp_path / "zzz-unusual.gguf")
    assert kind_of_gguf(read_gguf(model)) is GgufKind.MODEL and resolve_gguf(tmp_path, None) == model
    parameters = llama().llama_model_default_params()
    assert not llama().llama_model_load_from_file(str(other).encode(), parameters), "llama.cpp runs it after all"
    for verb in (["generate", "-p", "x"], ["fit"], ["bench"]):
        outcome = moe_gguf(verb[0], other, *verb[1:])
        assert outcome.status == 1 and f"{kind}, not a model that can be run; " in outcome.stderr
    assert f"this file is {kind}" in moe_gguf("inspect", other).stdout


def test_a_small_model_beside_a_large_one_drafts_for_it(tmp_path: Path) -> None:
    draft = write_tiny(tmp_path / "Draft-Q4_K_M.gguf", halved)
    assert best_gguf(tmp_path) == draft
    model = write_tiny(tmp_path / "Model-F32.gguf")
    assert best_gguf(tmp_path) == model


def test_a_broken_file_is_the_last_choice(tmp_path: Path) -> None:
    whole = write_tiny(tmp_path / "M-F32.gguf")
    (tmp_path / "M-Q4_K_M.gguf").write_bytes(whole.read_bytes()[:5000])
    assert best_gguf(tmp_path) == whole
    whole.unlink()
    with pytest.raises(GgufError, match="broken GGUF header"):
        read_gguf(resolve_gguf(tmp_path, None))


def test_mixes_of_other_names_are_ranked_by_their_bits(tmp_path: Path) -> None:
    def of_type(qtype: gguf.GGMLQuantizationType) -> Callable[[Path], Path]:
        def make(path: Path) -> Path:
            writer = gguf.GGUFWriter(path, "llama")
            block, size = gguf.GGML_QUANT_SIZES[qtype]
            data = np.zeros((64, 256 // block * size), np.uint8)
            writer.add_tensor("blk.0.attn_q.weight", data, raw_dtype=qtype)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            return path

        return make

    types = gguf.GGMLQuantizationType
    order = [
        ("M-Q4_K_M.gguf", types.Q4_K),
        ("M-UD-Q4_K_XL.gguf", types.Q4_1),
        ("M-Q5_K_M.gguf", types.Q5_K),
        ("M-Q5_K_XXL.gguf", types.Q6_K),
        ("M-UD-Q8_K_XL.gguf", types.Q8_0),
        ("M-UD-IQ1_M.gguf", types.IQ1_M),
        ("M-F32.gguf", types.F32),
    ]
    made = [of_type(qtype)(tmp_path / name) for name, qtype in order]
    for path in made:
        assert best_gguf(tmp_path) == path
        path.unlink()


def test_parts_are_told_how_to_be_joined(tmp_path: Path) -> None:
    whole = write_tiny(tmp_path / "whole.gguf")
    data = whole.read_bytes()
    whole.unlink()
    for names in (("m.gguf.part1of2", "m.gguf.part2of2"), ("n.gguf-split-a", "n.gguf-split-b")):
        for name, piece in zip(names, (data[:90_000], data[90_000:]), strict=True):
            (tmp_path / name).write_bytes(piece)
        for name in names:
            for arguments in (("generate", tmp_path / name, "-p", "x"), ("inspect", tmp_path / name)):
                outcome = moe_gguf(*arguments)
                assert outcome.status == 1 and f"join them with: cat {names[0][:6]}" in outcome.stderr
    with pytest.raises(GgufError, match=r"no model in this folder: m\.gguf\.part1of2 is part 1 of 2 of a file"):
        resolve_gguf(tmp_path, None)
    joined = tmp_path / "m.gguf"
    joined.write_bytes(b"".join((tmp_path / f"m.gguf.part{i}of2").read_bytes() for i in (1, 2)))
    assert resolve_gguf(tmp_path, None) == joined and kind_of_gguf(read_gguf(joined)) is GgufKind.MODEL


FOREIGN: dict[str, tuple[bytes, str]] = {
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"),
    "web page": (b"\n<!DOCTYPE html><html></html>" + bytes(90), "a web page, not the file"),
    "refusal": (b'{"error":"Repository not found"}', "the message of a server that refused"),
    "ggml": (b"lmgg" + bytes(90), "a ggml file, the format before GGUF"),
    "ggjt": (b"tjgg\x03\0\0\0" + bytes(90), "a ggjt file, the format before GGUF"),
    "big-endian": (b"GGUF\0\0\0\x03" + bytes(90), "a big-endian file"),
    "version 1": (b"GGUF\x01\0\0\0" + bytes(90), "GGUF version 1 (the first, of August 2023)"),
    "zip": (b"PK\x03\x04" + bytes(90), "a zip archive, perhaps a PyTorch checkpoint"),
    "safetensors": (b"\x10" + bytes(7) + b'{"a":{}}' + bytes(90), "a safetensors file; give the checkpoint's folder"),
    "zeros": (bytes(5000), "a download that was not finished"),
    "nothing": (b"", "empty; download it again"),
    "something": (b"hello world, this is text", "not a GGUF file"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_kinds_are_called_what_they_are(name: str, tmp_path: Path) -> None:
    content, said = FOREIGN[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    for arguments in (("inspect", path), ("generate", path, "-p", "x"), ("quantize", path, "--type", "Q8_0")):
        outcome = moe_gguf(*arguments)
        assert outcome.status == 1 and said in outcome.stderr and outcome.stderr.count("\n") == 1
    assert not llama().llama_model_load_from_file(os.fsencode(path), llama().llama_model_default_params())
