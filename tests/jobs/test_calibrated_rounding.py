"""`quantize --moments` on a tiny mixture: whole files, what they say of themselves, and moments that are refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.formats.moments import Entry, Moment, MomentsFile, MomentsInfo, MomentsWriter, is_exact, model_digest
from moe_gguf.quantize.ggml import quantize_chunk

from ..command import moe_gguf
from ..quantize.tiny_files import TINY, write_tiny

SHARED = {"attn_q": ("attn_q", "attn_k", "attn_v"), "attn_output": ("attn_output",)}
SHARED |= {"ffn_gate_exps": ("ffn_gate_exps", "ffn_up_exps"), "ffn_down_exps": ("ffn_down_exps",)}
Sums = Callable[[np.random.Generator], np.ndarray]


def correlated(numbers: np.random.Generator) -> np.ndarray:
    inputs = numbers.normal(size=(600, 40)) @ numbers.normal(size=(40, 256)) + numbers.normal(size=(600, 256))
    return (inputs.T @ inputs).astype(np.float32)


def diagonal(numbers: np.random.Generator) -> np.ndarray:
    return np.diag(numbers.uniform(0.5, 9, 256)).astype(np.float32)


def identity(_: np.random.Generator) -> np.ndarray:
    return np.eye(256, dtype=np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny-F32.gguf")


def write_moments(
    path: Path, model: Path, sums: Sums, architecture: str = "", n_tokens: int = 600, n_sample: int = 4
) -> Path:
    file = read_gguf(model)
    shapes = [(tensor.name, tensor.shape) for tensor in file.tensors.values()]
    exact = [
        (tensor.name, np.fromfile(tensor.path, "<f4", int(np.prod(tensor.shape)), offset=tensor.offset))
        for tensor in file.tensors.values()
        if is_exact(tensor.name, tensor.shape)
    ]
    entries = []
    for layer in range(3):
        for name, weights in SHARED.items():
            names = tuple(f"blk.{layer}.{weight}.weight" for weight in weights)
            entries.append(Entry(f"blk.{layer}.{name}", names, 256, 4 if "exps" in name else 1, 256))
    digest = model_digest(architecture or file.architecture, shapes, exact)
    numbers = np.random.default_rng(5)
    with MomentsWriter(path, MomentsInfo(digest, "text", "a.txt", 512, tuple(entries))) as writer:
        for entry in writer.missing:
            sample = (
                numbers.normal(size=(n_sample, 256)).astype(np.float32)
                if sums is not correlated
                else np.zeros((0, 256))
            )
            writer.put(entry, [Moment((sums(numbers),), n_tokens, 1.0, sample) for _ in range(entry.n_expert)])
        writer.finish()
    return path


def test_experts_that_saw_few_tokens_and_tensors_without_correlations_are_told(model: Path, tmp_path: Path) -> None:
    few = write_moments(tmp_path / "few", model, correlated, n_tokens=100)
    rounding = quantize(model, tmp_path / "a.gguf", "--moments", few)["rounding"]
    assert isinstance(rounding, dict) and rounding["few_tokens"]["blk.1.ffn_up_exps.weight"] == [0, 1, 2, 3]
    alone = quantize(model, tmp_path / "b.gguf", "--moments", write_moments(tmp_path / "d", model, diagonal))[
        "rounding"
    ]
    assert isinstance(alone, dict) and alone["reasons"]["blk.0.attn_q.weight"] == "no correlations in its moments"
    done = moe_gguf("quantize", model, "--type", "IQ4_NL", "-o", tmp_path / "c.gguf", "--moments", few, "-q")
    assert "plainly: no moments" in done.stdout


def quantize(model: Path, out: Path, *options: str | Path) -> dict[str, object]:
    done = moe_gguf("quantize", model, "--type", "Q4_K_S", "-o", out, "--json", "-q", *options)
    assert done.status == 0, done.stderr
    return json.loads(done.stdout)["outputs"][0]


def test_feedback_reaches_every_tensor_with_moments_and_the_file_says_so(model: Path, tmp_path: Path) -> None:
    moments = write_moments(tmp_path / "m", model, correlated)
    report = quantize(model, tmp_path / "a.gguf", "--moments", moments, "--threads", "1")
    rounding = report["rounding"]
    reasons = {"output.weight": "no moments", "token_embd.weight": "no moments"}
    assert rounding == {
        "kind": "calibrated",
        "tensors": 21,
        "fallen_back": list(reasons),
        "reasons": reasons,
        "few_tokens": {},
    }
    metadata = read_gguf(tmp_path / "a.gguf").metadata
    assert metadata["quantize.rounding"] == "calibrated" and metadata["quantize.moments.tokens"] == 600
    quantize(model, tmp_path / "b.gguf", "--moments", moments, "--threads", "3")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert quantize(model, tmp_path / "c.gguf")["rounding"] == {"kind": "plain", "tensors": 0, "fallen_back": []}


@pytest.mark.parametrize("sums", [identity, diagonal])
def test_moments_without_correlations_give_llama_cpps_rounding(sums: Sums, model: Path, tmp_path: Path) -> None:
    quantize(model, tmp_path / "a.gguf", "--moments", write_moments(tmp_path / "m", model, sums))
    exact, made = read_gguf(model), read_gguf(tmp_path / "a.gguf")
    numbers = np.random.default_rng(5)
    for layer in range(3):
        for name, weights in SHARED.items():
            importances = []
            for _ in range(4 if "exps" in name else 1):
                if not importances:
                    numbers.normal(size=(4, 256))
                importances.append(None if sums is identity else sums(numbers).diagonal())
            for weight in weights:
                tensor = exact.tensors[f"blk.{layer}.{weight}.weight"]
                rows = np.fromfile(tensor.path, "<f4", int(np.prod(tensor.shape)), offset=tensor.offset)
                written = made.tensors[tensor.name]
                data = np.fromfile(written.path, np.uint8, written.n_bytes, offset=written.offset)
                expected = [
                    quantize_chunk(gguf.GGMLQuantizationType(written.qtype), part.reshape(-1, 256), importance)
                    for part, importance in zip(np.split(rows, len(importances)), importances, strict=True)
                ]
                np.testing.assert_array_equal(data, np.concatenate(expected).reshape(-1))


def test_feedback_that_does_worse_on_held_out_inputs_is_not_kept(model: Path, tmp_path: Path) -> None:
    def misleading(numbers: np.random.Generator) -> np.ndarray:  # the samples that go with it are not correlated
        return correlated(numbers)

    moments = write_moments(tmp_path / "m", model, misleading, n_sample=32)
    rounding = quantize(model, tmp_path / "a.gguf", "--moments", moments)["rounding"]
    assert isinstance(rounding, dict) and len(rounding["fallen_back"]) == 23
    # Other inputs than those that chose are looked at: a few rows had luck with the former.
    assert 1 <= rounding["error"] < 1.15


def test_moments_of_another_model_are_refused(model: Path, tmp_path: Path) -> None:
    other = write_moments(tmp_path / "other", model, identity, architecture="another")
    out = tmp_path / "a.gguf"
    done = moe_gguf("quantize", model, "--type", "Q4_K_S", "-o", out, "--moments", other, "-q")
    assert "made from another model" in done.stderr and not list(tmp_path.glob("a*"))
    both = moe_gguf("quantize", model, "--type", "Q4_K_S", "-o", out, "--moments", other, "--imatrix", other, "-q")
    assert "exclude each other" in both.stderr
    wrong = moe_gguf("quantize", model, "--type", "Q4_K_S", "-o", out, "--moments", model, "-q")
    assert "header" in wrong.stderr


def test_moments_that_are_not_finite_or_not_finished_write_nothing(model: Path, tmp_path: Path) -> None:
    def broken(numbers: np.random.Generator) -> np.ndarray:
        sums = diagonal(numbers)
        sums[7, 7] = np.nan
        return sums

    out = tmp_path / "a.gguf"
    with np.errstate(invalid="ignore"):
        wrong = write_moments(tmp_path / "wrong", model, broken)
    done = moe_gguf("quantize", model, "--type", "Q4_K_S", "-o", out, "--moments", wrong, "-q")
    assert done.status == 1 and "of blk.0.attn_q are not finite" in done.stderr
    info = MomentsFile(write_moments(tmp_path / "whole", model, identity)).info
    with MomentsWriter(tmp_path / "half", info) as writer:
        first = writer.missing[0]
        writer.put(first, [Moment((identity(np.random.default_rng(1)),), 5, 1.0, np.zeros((0, 256), np.float32))])
    done = moe_gguf("quantize", model, "--type", "Q4_K_S", "-o", out, "--moments", writer.partial, "-q")
    assert done.status == 1 and "unfinished, 11 of 12 inputs are missing" in done.stderr
    assert not list(tmp_path.glob("a.gguf*"))


def test_moments_of_another_size_are_refused(model: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other.gguf", replace(TINY, n_embd=512, n_ff=512))
    moments = write_moments(tmp_path / "m", model, identity)
    done = moe_gguf("quantize", other, "--type", "Q4_K_S", "-o", tmp_path / "a.gguf", "--moments", moments, "-q")
    assert done.status == 1 and "made for another model" in done.stderr and not list(tmp_path.glob("a.gguf*"))
