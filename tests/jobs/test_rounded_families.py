"""imatrix --moments and quantize --moments on other shapes than Mixtral's, on any number of threads and interrupted."""

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from moe_gguf.formats.errors import MoeGgufError
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.formats.moments import MomentsFile
from moe_gguf.formats.positional import PositionalFile
from moe_gguf.jobs import imatrix, quantize
from moe_gguf.jobs.loading import LoadRequest
from moe_gguf.quantize import rounding
from moe_gguf.quantize.choices import MixOptions
from moe_gguf.quantize.file_types import parse_file_type
from moe_gguf.quantize.stock_policy import stock

from ..runner.tiny_gguf import N_EMBD, N_EXPERT, N_FF, N_HEAD, N_LAYER, Fields, Tensors, write_tiny

TEXT = "the cat and the hat in a land that had a thin can. " * 60
HEAD = N_EMBD // N_HEAD
Change = Callable[[Fields, Tensors], None]


def renamed(fields: Fields, architecture: str) -> None:
    """Make the hyperparameters those of another architecture."""
    for key in [key for key in fields if key.startswith("llama.")]:
        fields[key.replace("llama.", f"{architecture}.", 1)] = fields.pop(key)
    fields["general.architecture"] = architecture


def dense(fields: Fields, tensors: Tensors) -> None:
    for key in ("llama.expert_count", "llama.expert_used_count"):
        del fields[key]
    for name in [name for name in tensors if "ffn_gate_inp" in name or "_exps" in name]:
        array = tensors.pop(name)
        if "_exps" in name:
            tensors[name.replace("_exps", "")] = array[0]


def qwen3_moe(fields: Fields, tensors: Tensors) -> None:
    renamed(fields, "qwen3moe")
    fields |= {
        "qwen3moe.attention.key_length": HEAD,
        "qwen3moe.attention.value_length": HEAD,
        "qwen3moe.expert_feed_forward_length": N_FF,
    }
    for layer in range(N_LAYER):
        for part in "qk":
            tensors[f"blk.{layer}.attn_{part}_norm.weight"] = np.ones(HEAD, np.float32)


def olmoe(fields: Fields, tensors: Tensors) -> None:
    renamed(fields, "olmoe")
    fields["olmoe.attention.head_count_kv"] = N_HEAD
    numbers = np.random.default_rng(1)
    for layer in range(N_LAYER):
        for part in "kv":
            tensors[f"blk.{layer}.attn_{part}.weight"] = numbers.normal(0, 0.2, (N_EMBD, N_EMBD)).astype(np.float32)
        for part in "qk":
            tensors[f"blk.{layer}.attn_{part}_norm.weight"] = np.ones(N_EMBD, np.float32)


def moments_of(model: Path, folder: Path) -> Path:
    text, out = folder / "text.txt", folder / "moments"
    text.write_text(TEXT)
    load = LoadRequest(n_threads=1, devices=())
    request = imatrix.Request(model, folder / "i.gguf", (text,), n_ctx=128, n_chunk=6, moments=out, load=load)
    imatrix.run(imatrix.prepare(request))
    return out


def rounded(
    model: Path, moments: Path | None, out: Path, n_threads: int = 1, thorough: bool = False
) -> quantize.Report:
    request = quantize.Request(
        model,
        (stock(parse_file_type("Q4_0")),),
        outfile=str(out),
        moments=moments,
        rounding="thorough" if thorough else "quick",
        options=MixOptions(pure=True),
        n_threads=n_threads,
    )
    return quantize.run(quantize.prepare(request))


@pytest.mark.parametrize("change", [dense, qwen3_moe, olmoe])
def test_every_matrix_but_the_embeddings_is_rounded_with_feedback(change: Change, tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", change)
    moments = moments_of(model, tmp_path)
    n_expert = {entry.n_expert for entry in MomentsFile(moments).info.entries if "ffn" in entry.name}
    assert n_expert == ({1} if change is dense else {N_EXPERT})
    report = rounded(model, moments, tmp_path / "out.gguf").outputs[0].rounding
    assert report and report.kind == "calibrated" and report.n_tensors == 7 * N_LAYER + 1
    assert dict(report.fallen_back) == {"token_embd.weight": "no moments"}
    assert report.error is not None and report.error < 0.9
    metadata = read_gguf(tmp_path / "out.gguf").metadata
    assert metadata["quantize.rounding"] == "calibrated"


def test_threads_and_interruptions_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_tiny(tmp_path / "tiny.gguf")
    moments = moments_of(model, tmp_path)
    for n_threads in (1, 3):
        rounded(model, moments, tmp_path / f"{n_threads}.gguf", n_threads)
    write, written = PositionalFile.write, [0]

    def limited(self: PositionalFile, offset: int, data: memoryview) -> None:
        written[0] += 1
        if written[0] > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, offset, data)

    with monkeypatch.context() as patch:
        patch.setattr(PositionalFile, "write", limited)
        with pytest.raises(MoeGgufError, match="disk is full"):
            rounded(model, moments, tmp_path / "2.gguf", 2)
    assert not (tmp_path / "2.gguf").exists()
    rounded(model, moments, tmp_path / "2.gguf", 2)
    assert len({(tmp_path / f"{n}.gguf").read_bytes() for n in (1, 2, 3)}) == 1


def test_long_rows_are_gone_through_again_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_tiny(tmp_path / "tiny.gguf")
    moments = moments_of(model, tmp_path)
    rounded(model, moments, tmp_path / "short.gguf")
    monkeypatch.setattr(rounding, "SHORT", 32)
    rounded(model, moments, tmp_path / "quick.gguf")
    rounded(model, moments, tmp_path / "thorough.gguf", thorough=True)
    short, quick, thorough = ((tmp_path / f"{name}.gguf").read_bytes() for name in ("short", "quick", "thorough"))
    assert short == thorough != quick
    with pytest.raises(MoeGgufError, match="add --moments"):
        rounded(model, None, tmp_path / "none.gguf", thorough=True)
