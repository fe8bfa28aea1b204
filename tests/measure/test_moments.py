"""Second moments against inputs that were captured one by one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from moe_gguf.formats.errors import EngineError
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.formats.moments import MomentsFile
from moe_gguf.jobs import imatrix as job
from moe_gguf.jobs.loading import LoadRequest
from moe_gguf.measure import moments as measure
from moe_gguf.measure.chunks import CalibrationText, cut_chunks
from moe_gguf.runner.model import Model
from moe_gguf.runner.tap import capture
from threadpoolctl import threadpool_info, threadpool_limits

from ..loaded_models import ONE_THREAD
from ..runner.tiny_gguf import N_EXPERT, N_FF, N_LAYER

TEXT = "the cat and the hat in a land that had a thin can. " * 40
N_CTX = 128
LIKE_CAPTURED = LoadRequest(flash_attn="off", repack=False, n_threads=1)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def collected(tiny_path: Path, text: Path, folder: Path, **more: object) -> MomentsFile:
    fields = {"n_ctx": N_CTX, "n_chunk": 4, "moments": folder / "m.safetensors", "load": LIKE_CAPTURED, **more}
    request = job.Request(tiny_path, folder / "i.gguf", (text,), **fields)  # pyright: ignore[reportArgumentType]
    assert job.run(job.prepare(request)).moments
    return MomentsFile(folder / "m.safetensors")


def test_moments_are_sums_over_the_tokens_of_each_expert(
    tiny: Model, tiny_path: Path, text: Path, tmp_path: Path
) -> None:
    found = collected(tiny_path, text, tmp_path)
    assert {frozenset(entry.weights) for entry in found.info.entries} == {
        frozenset({"output.weight"}),
        *(frozenset(f"blk.{i}.attn_{part}.weight" for part in "qk") for i in range(N_LAYER)),
        *(frozenset({f"blk.{i}.attn_v.weight"}) for i in range(N_LAYER)),
        *(frozenset({f"blk.{i}.attn_output.weight"}) for i in range(N_LAYER)),
        *(frozenset({f"blk.{i}.ffn_up_exps.weight", f"blk.{i}.ffn_gate_exps.weight"}) for i in range(N_LAYER)),
        *(frozenset({f"blk.{i}.ffn_down_exps.weight"}) for i in range(N_LAYER)),
    }
    chunks = cut_chunks(tiny, [CalibrationText("text", TEXT)], N_CTX)[:4]
    names = ("attn_norm-1", "ffn_norm-1", "ffn_moe_topk-1", "ffn_moe_weights_norm-1")
    parts = [capture(tiny, ONE_THREAD, chunk.tolist(), lambda name: name in names) for chunk in chunks]
    seen = {name: np.concatenate([part[name] for part in parts]) for name in names}
    x = seen["attn_norm-1"].astype(np.float64)
    demand_equal(found, "blk.1.attn_k.weight", 0, x, np.ones(len(x)))
    x = seen["ffn_norm-1"].astype(np.float64)
    for expert in range(N_EXPERT):
        token, slot = np.nonzero(seen["ffn_moe_topk-1"] == expert)
        w = seen["ffn_moe_weights_norm-1"].reshape(len(x), -1)[token, slot]
        demand_equal(found, "blk.1.ffn_up_exps.weight", expert, x[token], w)


@pytest.mark.parametrize("flash_attn", ["on", "off"])
@pytest.mark.parametrize(("n_batch", "n_ubatch"), [(512, 512), (512, 96), (72, 64)])
def test_inputs_of_values_are_summed_as_attention_averages_them(
    tiny: Model, tiny_path: Path, text: Path, tmp_path: Path, flash_attn: str, n_batch: int, n_ubatch: int
) -> None:
    """The weights are those of llama.cpp's own softmax, of one head per token in turn."""
    load = replace(LIKE_CAPTURED, flash_attn=flash_attn, n_batch=n_batch, n_ubatch=n_ubatch)
    found = collected(tiny_path, text, tmp_path, load=load)
    averaged, whole = [], replace(ONE_THREAD, n_ubatch=N_CTX, n_batch=N_CTX, flash_attn="off")
    for chunk in cut_chunks(tiny, [CalibrationText("text", TEXT)], N_CTX)[:4]:
        part = capture(tiny, whole, chunk.tolist(), lambda name: name in ("attn_norm-0", "kq_soft_max-0"))
        weights = part["kq_soft_max-0"].reshape(-1, N_CTX, part["kq_soft_max-0"].shape[-1])[..., :N_CTX]
        token = np.arange(N_CTX)
        averaged.append(weights[token % len(weights), token].astype(np.float64) @ part["attn_norm-0"])
    x = np.concatenate(averaged)
    assert np.abs(x[1:] - x[:-1]).max() > 0.1
    demand_equal(found, "blk.0.attn_v.weight", 0, x, np.ones(len(x)))


def test_inputs_of_values_count_by_themselves_where_attention_is_not_to_be_had(
    tiny: Model, tiny_path: Path, text: Path, tmp_path: Path
) -> None:
    """Keys of other types than F16 and F32 are not read."""
    load = replace(LIKE_CAPTURED, flash_attn="on", cache_type_k="bf16")
    found = collected(tiny_path, text, tmp_path, load=load)
    chunks = cut_chunks(tiny, [CalibrationText("text", TEXT)], N_CTX)[:4]
    parts = [capture(tiny, ONE_THREAD, chunk.tolist(), lambda name: name == "attn_norm-0") for chunk in chunks]
    x = np.concatenate([part["attn_norm-0"] for part in parts])
    demand_equal(found, "blk.0.attn_v.weight", 0, x.astype(np.float64), np.ones(len(x)))


def demand_equal(found: MomentsFile, name: str, expert: int, x: np.ndarray, w: np.ndarray) -> None:
    """Compare with H of these inputs, to which the inputs that were kept apart are added."""
    entry = next(entry for entry in found.info.entries if name in entry.weights)
    moment = found.read(entry, expert)
    kept = moment.sample[moment.sample.any(axis=1)]
    assert moment.n_tokens + len(kept) == len(x) and len(kept) > 0
    expected = (x * np.square(w)[:, None]).T @ x
    np.testing.assert_allclose(
        moment.blocks[0] + kept.T @ kept, expected, rtol=1e-3, atol=2e-4 * np.abs(expected).max()
    )


def test_several_passes_in_blocks_sum_the_same(tiny_path: Path, text: Path, tmp_path: Path) -> None:
    whole = collected(tiny_path, text, tmp_path)
    memory = 4 * N_EXPERT * N_FF**2
    (tmp_path / "cut").mkdir()
    cut = collected(tiny_path, text, tmp_path / "cut", memory=memory)
    assert len(measure.passes(cut.info.entries, memory)) > 2
    for entry in whole.info.entries:
        one, other = whole.read(entry, 0), cut.read(entry, 0)
        np.testing.assert_allclose(one.diagonal, other.diagonal, rtol=1e-5)
        assert one.n_tokens == other.n_tokens
    assert (tmp_path / "i.gguf").read_bytes() == (tmp_path / "cut" / "i.gguf").read_bytes()


def test_blocks_are_as_wide_as_the_memory_allows(tiny_path: Path) -> None:
    file = read_gguf(tiny_path)
    sources = [measure.Source(("blk.0.ffn_down_exps.weight",), 14336, 4), measure.Source(("output.weight",), 64, 0)]
    assert [entry.width for entry in measure.plan(sources, file, 2**40)] == [14336, 64]
    assert [entry.width for entry in measure.plan(sources, file, 2**30)] == [4096, 64]
    narrow = measure.plan(sources, file, 2**20)
    assert [entry.width for entry in narrow] == [1024, 64]
    with pytest.raises(EngineError, match=r"ffn_down_exps.weight alone take 0.2 GiB"):
        measure.passes(narrow, 2**20)


@pytest.mark.parametrize(("start", "stop"), [(0, 96), (32, 64)])
def test_products_are_added_to_the_lower_triangle(start: int, stop: int) -> None:
    rows = np.random.default_rng(1).standard_normal((37, 96)).astype(np.float32)
    n = stop - start
    h = np.ones((n, n), np.float32)
    measure.add_products(rows, start, stop, h)
    part = rows[:, start:stop].astype(np.float64)
    expected = np.where(np.tri(n, dtype=bool), part.T @ part + 1, 1)
    np.testing.assert_allclose(h, expected, atol=1e-4)


def test_blas_is_there_before_its_threads_are_limited() -> None:
    """A library that is loaded inside threadpool_limits is not limited: its threads and ours once took turns."""
    measure.ssyrk.cache_clear()
    with measure.Moments((), 1), threadpool_limits(1, "blas"):
        assert measure.ssyrk.cache_info().currsize == 1
        assert {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"} == {1}
