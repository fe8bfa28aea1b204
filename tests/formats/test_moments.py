"""Files of moments: read by the safetensors package as by us; what is of another model or unfinished is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from moe_gguf.formats.errors import MomentsError
from moe_gguf.formats.moments import Entry, Moment, MomentsFile, MomentsInfo, MomentsWriter, is_exact, model_digest
from safetensors.numpy import load_file, save_file

FULL = Entry("attn", ("blk.0.attn_q.weight", "blk.0.attn_k.weight"), 24, 1, 24, 4)
BLOCKS = Entry("down", ("blk.0.ffn_down_exps.weight",), 40, 3, 16)
INFO = MomentsInfo("model", "text", "a.txt", 512, (FULL, BLOCKS))


def moments_of(entry: Entry, inputs: np.ndarray) -> list[Moment]:
    h = inputs.T @ inputs
    blocks = tuple(h[start:stop, start:stop] for start, stop in entry.blocks)
    return [Moment(blocks, len(inputs), float(len(inputs)), inputs[:3])] * entry.n_expert


def inputs_of(entry: Entry) -> np.ndarray:
    return np.random.default_rng(entry.row_length).normal(size=(90, entry.row_length)).astype(np.float32)


def write(path: Path) -> Path:
    with MomentsWriter(path, INFO) as writer:
        for entry in writer.missing:
            writer.put(entry, moments_of(entry, inputs_of(entry)))
        writer.finish()
    return path


def test_what_was_written_is_read_block_by_block(tmp_path: Path) -> None:
    file = MomentsFile(write(tmp_path / "m"))
    assert file.info == INFO and file.n_tokens == 90
    assert not list(tmp_path.glob("*.partial"))
    for entry in INFO.entries:
        read, expected = file.read(entry, entry.n_expert - 1), moments_of(entry, inputs_of(entry))[0]
        assert read.n_tokens == 90 and read.weight == 90
        np.testing.assert_array_equal(read.sample[:3], expected.sample)
        assert read.sample.shape == (entry.n_sample, entry.row_length) and not read.sample[3:].any()
        np.testing.assert_array_equal(read.diagonal, expected.diagonal)
        for block, exact in zip(read.blocks, expected.blocks, strict=True):
            assert (block == block.T).all()
            scale = np.sqrt(np.outer(exact.diagonal(), exact.diagonal()))
            assert np.abs((block - exact) / scale).max() < 2**-15
    assert file.path.stat().st_size == INFO.n_bytes
    assert load_file(file.path)["down.diagonal"].shape == (3, 40)


def test_an_interrupted_run_goes_on_and_is_refused_until_then(tmp_path: Path) -> None:
    path, whole = tmp_path / "m", write(tmp_path / "whole")
    with MomentsWriter(path, INFO) as writer:
        assert not writer.resumed
        writer.put(FULL, moments_of(FULL, inputs_of(FULL)))
        with pytest.raises(MomentsError, match="no moments of down came"):
            writer.finish()
    with pytest.raises(MomentsError, match="unfinished, 1 of 2 inputs"):
        MomentsFile(path.with_name("m.partial"))
    with MomentsWriter(path, INFO) as writer:
        assert writer.resumed and writer.missing == [BLOCKS]
        writer.put(BLOCKS, moments_of(BLOCKS, inputs_of(BLOCKS)))
        writer.finish()
    assert path.read_bytes() == whole.read_bytes()
    with MomentsWriter(path, replace(INFO, text="another")) as writer:
        assert not writer.resumed and writer.missing == [FULL, BLOCKS]


def test_moments_of_another_model_or_size_are_refused(tmp_path: Path) -> None:
    file = MomentsFile(write(tmp_path / "m"))
    assert file.entry("blk.0.attn_k.weight", (24, 8)) == FULL
    assert file.entry("blk.0.ffn_down_exps.weight", (40, 8, 3)) == BLOCKS
    assert file.entry("output.weight", (24, 8)) is None
    for name, shape in (("blk.0.attn_q.weight", (32, 8)), ("blk.0.ffn_down_exps.weight", (40, 8, 4))):
        with pytest.raises(MomentsError, match="for another model"):
            file.entry(name, shape)
    with pytest.raises(MomentsError, match="another model"):
        file.check_model("something else")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1.0])
def test_moments_that_are_not_finite_are_refused(wrong: float, tmp_path: Path) -> None:
    moment = moments_of(FULL, inputs_of(FULL))[0]
    moment.blocks[0][3, 3] = wrong
    with MomentsWriter(tmp_path / "m", replace(INFO, entries=(FULL,))) as writer, np.errstate(all="ignore"):
        writer.put(FULL, [moment])
        writer.finish()
    with pytest.raises(MomentsError, match="not finite"):
        MomentsFile(tmp_path / "m").read(FULL, 0)


def test_files_of_other_kinds_and_broken_ones_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m")
    save_file({"x": np.zeros(3)}, tmp_path / "other", metadata={"format": "pt"})
    with pytest.raises(MomentsError, match="no file of moments"):
        MomentsFile(tmp_path / "other")
    data = path.read_bytes()
    for old, new, what in (
        (b'"version":"1"', b'"version":"9"', "version 9"),
        (b'"attn.tokens"', b'"attn.tokenz"', "attn.tokens is missing"),
        (b"row_length", b"row_lenght", "cannot be read"),
    ):
        (tmp_path / "broken").write_bytes(data.replace(old, new))
        with pytest.raises(MomentsError, match=what):
            MomentsFile(tmp_path / "broken")
    (tmp_path / "broken").write_bytes(data[:-1])
    with pytest.raises(MomentsError, match="truncated"):
        MomentsFile(tmp_path / "broken")
    with pytest.raises(MomentsError, match="no such file"):
        MomentsFile(tmp_path / "nothing")


def test_a_model_is_told_by_shapes_norms_and_routers() -> None:
    assert is_exact("blk.0.attn_norm.weight", (64,)) and is_exact("blk.0.ffn_gate_inp.weight", (64, 4))
    assert not is_exact("blk.0.attn_q.weight", (64, 64))
    norm = ("output_norm.weight", np.ones(4, np.float32))
    digest = model_digest("llama", [("a", (4, 4)), ("b", (4,))], [norm])
    assert digest == model_digest("llama", [("b", [4]), ("a", [4, 4])], [norm])
    assert digest != model_digest("llama", [("a", (4, 5)), ("b", (4,))], [norm])
    assert digest != model_digest("llama", [("a", (4, 4)), ("b", (4,))], [(norm[0], 2 * norm[1])])
