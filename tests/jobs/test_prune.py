"""Experts dropped: the right ones by REAP's saliency, the others' bytes untouched, and nothing else changed."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from moe_gguf.formats.errors import OutputError
from moe_gguf.jobs import prune
from moe_gguf.measure.chunks import CalibrationText, cut_chunks
from moe_gguf.measure.saliency import best_experts, find_saliency
from moe_gguf.runner.model import Model
from moe_gguf.runner.tap import capture

from ..command import moe_gguf
from ..loaded_models import ONE_THREAD
from ..runner.tiny_gguf import N_EXPERT, N_LAYER, Tensors, write_tiny

SAID = "the cat and the hat in a land that had a thin can\n" * 20


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(SAID)
    return path


def test_saliency_is_the_mean_of_weight_times_norm(tiny: Model) -> None:
    chunks = cut_chunks(tiny, [CalibrationText("a text", SAID)], 64)[:2]
    found = find_saliency(tiny, ONE_THREAD, chunks, N_EXPERT)
    total, count = np.zeros((N_LAYER, N_EXPERT)), np.zeros((N_LAYER, N_EXPERT), int)
    for tokens in chunks.tolist():
        seen = capture(tiny, ONE_THREAD, tokens, lambda name: name.startswith("ffn_moe_"))
        for layer in range(N_LAYER):
            chosen = seen[f"ffn_moe_topk-{layer}"]
            logits = np.take_along_axis(np.log(seen[f"ffn_moe_probs-{layer}"]), chosen, 1).astype(np.float64)
            weight = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            norm = np.linalg.norm(seen[f"ffn_moe_down-{layer}"].astype(np.float64), axis=2)
            np.add.at(total[layer], chosen, weight * norm)
            np.add.at(count[layer], chosen, 1)
    assert np.array_equal(found.tokens, count) and count.sum() == 2 * N_LAYER * chunks.size
    np.testing.assert_allclose(found.mean, total / np.maximum(count, 1), rtol=1e-4)


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("extra", [(), ("--by", "frequency"), ("--whole",)])
def test_those_that_stay_keep_their_bytes(tiny_path: Path, text: Path, tmp_path: Path, extra: Sequence[str]) -> None:
    made = tmp_path / "less.gguf"
    done = moe_gguf("prune-experts", tiny_path, "--keep", "3", "-f", text, "-c", "64", *extra, "-o", made, "--json")
    assert done.status == 0, done.stderr
    report = json.loads(done.stdout)
    before, after = tensors(tiny_path), tensors(made)
    assert list(before) == list(after)
    kept = {layer["layer"]: layer["kept"] for layer in report["layers"]}
    for layer in report["layers"]:
        scores = np.array(layer["tokens"] if "frequency" in extra else layer["scores"])
        if "--whole" not in extra:
            assert layer["kept"] == sorted(np.argsort(-scores, kind="stable")[:3].tolist())
    for name, array in before.items():
        of_experts = "_exps" in name or "ffn_gate_inp" in name
        assert np.array_equal(after[name], array[kept[int(name.split(".")[1])]] if of_experts else array), name
    if "--whole" in extra:
        assert len({tuple(row) for row in kept.values()}) == 1
    reader = gguf.GGUFReader(made)
    assert reader.fields["llama.expert_count"].contents() == 3
    assert reader.fields["llama.expert_used_count"].contents() == 2
    assert reader.fields["prune.experts.kept"].contents() == [one for row in kept.values() for one in row]


def test_equal_experts_are_no_loss(text: Path, tmp_path: Path) -> None:
    def equal(_: object, tensors: Tensors) -> None:
        for name in tensors:
            if "_exps" in name:
                tensors[name][:] = tensors[name][:1]

    model, made = write_tiny(tmp_path / "model.gguf", equal), tmp_path / "less.gguf"
    done = moe_gguf(
        *("prune-experts", model, "--keep", "2", "-f", text, "-o", made, "-c", "64", "--compare", text, "--json")
    )
    assert done.status == 0, done.stderr
    (variant,) = json.loads(done.stdout)["compare"]["variants"]
    assert variant["routing"] is None and variant["bytes"] < model.stat().st_size
    assert abs(variant["kld"]["mean"]) < 1e-4 and variant["same_top"]["value"] == 1
    shown = moe_gguf("compare", model, made, "-f", text, "-c", "64")
    assert shown.status == 0 and "less.gguf" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--keep", "4"), "has 4 experts a layer; keep fewer of them"),
        (("--keep", "1"), "uses 2 experts per token; keep as many at least"),
    ],
)
def test_what_cannot_be_pruned_is_refused(tiny_path: Path, tmp_path: Path, arguments: tuple, message: str) -> None:
    done = moe_gguf("prune-experts", tiny_path, *arguments, "-o", tmp_path / "less.gguf")
    assert done.status == 1 and message in done.stderr and not (tmp_path / "less.gguf").exists()


def test_a_dense_model_and_an_output_that_is_there_are_refused(
    smollm2_path: Path, tiny_path: Path, tmp_path: Path
) -> None:
    dense = moe_gguf("prune-experts", smollm2_path, "--keep", "1", "-o", tmp_path / "less.gguf")
    assert dense.status == 1 and "has no experts" in dense.stderr
    (tmp_path / "there.gguf").write_text("mine")
    there = moe_gguf("prune-experts", tiny_path, "--keep", "3", "-o", tmp_path / "there.gguf")
    assert there.status == 1 and "exists already" in there.stderr
    assert (tmp_path / "there.gguf").read_text() == "mine"


def test_a_full_disk_is_told_before_the_text_is_read(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match="bytes are needed and 1,000 are free"):
        prune.prepare(prune.Request(tiny_path, tmp_path / "less.gguf", 3))
    assert not list(tmp_path.iterdir())


def test_the_best_by_layer_and_in_all() -> None:
    scores = np.array([[1.0, 3.0, 2.0], [90.0, 10.0, 80.0]])
    assert best_experts(scores, 2, whole=False).tolist() == [[1, 2], [0, 2]]
    assert best_experts(scores, 1, whole=True).tolist() == [[2], [2]]
    assert prune.GATE_NORM == "gate-norm"
