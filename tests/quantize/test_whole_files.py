"""Whole files, byte for byte: `moe-gguf quantize` from a checkpoint and from a GGUF against llama_model_quantize.

llama.cpp quantizes our own BF16 GGUF of the same checkpoint; metadata, order and every tensor must be the same.
"""

from pathlib import Path

import numpy as np
import pytest
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.quantize.file_types import parse_file_type
from moe_gguf.quantize.imatrix import load_imatrix
from moe_gguf.quantize.overrides import parse_kv_override

from ..checkpoints import Tiny, write_checkpoint
from ..command import convert, moe_gguf
from .oracle import quantize_file
from .tiny_files import numbers, write_imatrix

WIDE = Tiny(n_layer=2, n_embd=256, n_ff=512, n_head=4, n_head_kv=2, n_expert=3)
TYPES = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M", "Q5_0", "Q5_1", "Q5_K_M", "Q6_K", "Q8_0", "F16", "BF16")
WITH_IMATRIX = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_1", "Q5_K_M", "Q6_K", "IQ4_XS", "IQ2_XXS")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose rows divide into blocks of 256."""
    return write_checkpoint(tmp_path_factory.mktemp("wide") / "Wide", WIDE)


@pytest.fixture(scope="module")
def bf16(checkpoint: Path) -> Path:
    """Our own BF16 GGUF of it."""
    target = checkpoint.parent / "wide-bf16.gguf"
    assert convert(checkpoint, target).status == 0
    return target


@pytest.fixture(scope="module")
def matrix(bf16: Path) -> Path:
    """An importance matrix with a column of zeros, and an expert that no token reached."""
    sums, counts = {}, {}
    for i, tensor in enumerate(read_gguf(bf16).tensors.values()):
        if len(tensor.shape) > 1 and tensor.name != "token_embd.weight":
            n_expert = tensor.shape[2] if len(tensor.shape) > 2 else 1
            values = np.abs(numbers(n_expert * tensor.shape[0], 100 + i)).reshape(n_expert, -1)
            values[:, 3] = 0
            sums[tensor.name], counts[tensor.name] = values, np.arange(n_expert)[::-1] * 5.0 + (n_expert == 1)
    return write_imatrix(bf16.with_name("matrix.gguf"), sums, counts)


def ours(source: Path, folder: Path, types: tuple[str, ...], *options: str | Path) -> None:
    folder.mkdir()
    arguments = [part for name in types for part in ("--type", name)]
    outcome = moe_gguf("quantize", source, *arguments, "-o", folder, "-q", "-t", "2", *options)
    assert outcome.status == 0, outcome.stderr


def same_as_stock(folder: Path, bf16: Path, types: tuple[str, ...], matrix: Path | None = None, **options) -> None:
    imatrix = load_imatrix(matrix) if matrix else None
    stems = {path.stem.rpartition("-")[2]: path for path in folder.glob("*.gguf")}
    assert sorted(stems) == sorted(types)
    for name in types:
        stock = folder / f"stock-{name}.gguf"
        quantize_file(bf16, stock, parse_file_type(name), n_threads=1, imatrix=imatrix, **options)
        assert stems[name].read_bytes() == stock.read_bytes(), name


def test_all_types_from_a_checkpoint_in_one_pass(checkpoint: Path, bf16: Path, tmp_path: Path) -> None:
    ours(checkpoint, tmp_path / "out", TYPES)
    same_as_stock(tmp_path / "out", bf16, TYPES)


def test_all_types_from_a_gguf_in_one_pass(bf16: Path, tmp_path: Path) -> None:
    ours(bf16, tmp_path / "out", TYPES)
    same_as_stock(tmp_path / "out", bf16, TYPES)


def test_types_with_an_importance_matrix(checkpoint: Path, bf16: Path, matrix: Path, tmp_path: Path) -> None:
    ours(checkpoint, tmp_path / "out", WITH_IMATRIX, "--imatrix", matrix)
    same_as_stock(tmp_path / "out", bf16, WITH_IMATRIX, matrix)


def test_overrides(bf16: Path, tmp_path: Path) -> None:
    options = ("--tensor-type", "attn_v=q8_0", "--token-embedding-type", "q5_1", "--override-kv")
    ours(bf16, tmp_path / "out", ("Q4_K_M",), *options, "general.name=str:other")
    same_as_stock(
        tmp_path / "out",
        bf16,
        ("Q4_K_M",),
        tensor_types=[("attn_v", parse_file_type("Q8_0").qtype)],
        token_embedding_type=parse_file_type("Q5_1").qtype,
        kv_overrides=[parse_kv_override("general.name=str:other")],
    )


def test_pruned_layers(bf16: Path, tmp_path: Path) -> None:
    ours(bf16, tmp_path / "out", ("Q4_K_M", "Q8_0"), "--prune-layers", "0")
    same_as_stock(tmp_path / "out", bf16, ("Q4_K_M", "Q8_0"), prune_layers=(0,))


def test_requantizing(bf16: Path, tmp_path: Path) -> None:
    q8_0 = tmp_path / "wide-Q8_0.gguf"
    quantize_file(bf16, q8_0, "Q8_0", n_threads=1)
    refused = moe_gguf("quantize", q8_0, "--type", "Q4_K_M", "-o", tmp_path / "refused.gguf")
    assert refused.status == 1 and "--allow-requantize" in refused.stderr
    ours(q8_0, tmp_path / "out", ("Q4_K_M", "Q3_K_M"), "--allow-requantize")
    same_as_stock(tmp_path / "out", q8_0, ("Q4_K_M", "Q3_K_M"), allow_requantize=True)


def test_splits_are_the_same_tensors(bf16: Path, tmp_path: Path) -> None:
    ours(bf16, tmp_path / "whole", ("Q4_K_M",))
    ours(bf16, tmp_path / "split", ("Q4_K_M",), "--split-max-size", "400K")
    whole = read_gguf(next((tmp_path / "whole").glob("*.gguf")))
    first = next((tmp_path / "split").glob("*-00001-of-*.gguf"))
    split = read_gguf(first)
    assert len(split.shards) > 1 and list(split.tensors) == list(whole.tensors)
    for name, tensor in split.tensors.items():
        other = whole.tensors[name]
        one = tensor.path.read_bytes()[tensor.offset : tensor.offset + tensor.n_bytes]
        assert one == whole.path.read_bytes()[other.offset : other.offset + other.n_bytes]
    ours(first, tmp_path / "again", ("COPY",), "--keep-split")
    again = sorted((tmp_path / "again").glob("*.gguf"))
    assert [path.stat().st_size for path in again] == [path.stat().st_size for path in split.shards]


def test_old_separate_experts_are_stacked(bf16: Path, tmp_path: Path) -> None:
    old = separate_experts(bf16, tmp_path / "old.gguf")
    ours(old, tmp_path / "out", ("COPY",))
    file, whole = read_gguf(next((tmp_path / "out").glob("*.gguf"))), read_gguf(bf16)
    assert set(file.tensors) == set(whole.tensors)
    for name, tensor in file.tensors.items():
        other = whole.tensors[name]
        assert tensor.shape == other.shape
        one = tensor.path.read_bytes()[tensor.offset : tensor.offset + tensor.n_bytes]
        assert one == whole.path.read_bytes()[other.offset : other.offset + other.n_bytes]


def separate_experts(source: Path, target: Path) -> Path:
    """Write a GGUF as llama.cpp's converter did before April 2024: one tensor per expert."""
    import gguf

    file = read_gguf(source)
    writer = gguf.GGUFWriter(target, "llama")
    for key, field in file.fields.items():
        if key != "general.architecture":
            writer.add_key_value(key, field.value, field.type, field.item_type)
    for tensor in file.tensors.values():
        data = np.fromfile(source, np.uint8, tensor.n_bytes, offset=tensor.offset)
        if "_exps" not in tensor.name:
            rows = data.reshape(*reversed(tensor.shape[1:]), -1)
            writer.add_tensor(tensor.name, rows, raw_dtype=tensor.qtype)
            continue
        for expert, part in enumerate(data.reshape(tensor.shape[2], tensor.shape[1], -1)):
            name = tensor.name.replace("_exps.", f".{expert}.")
            writer.add_tensor(name, part.copy(), raw_dtype=tensor.qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
