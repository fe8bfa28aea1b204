"""Merged checkpoints on disk: whole, sharded, readable by others, and never in the way of what is there."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from moe_gguf.formats.checkpoint import Parent, open_checkpoint
from moe_gguf.formats.errors import Interrupted, OutputError
from moe_gguf.merge.card import merge_card
from moe_gguf.merge.open import open_recipe
from moe_gguf.merge.recipe import Recipe, read_recipe
from moe_gguf.merge.write import write_merge
from safetensors import safe_open

from .cases import CASES, write_case


def small_recipe(folder: Path, name: str = "mixtral-mistral") -> Recipe:
    path = write_case(folder, CASES[name])
    path.write_text(path.read_text().replace('"hidden"', '"random"'))
    return read_recipe(path)


@pytest.mark.parametrize("layout", ["classic", "fused"])
def test_what_is_written_is_what_was_opened(tmp_path: Path, layout: str) -> None:
    recipe = small_recipe(tmp_path)
    merged = open_recipe(recipe, layout=layout)
    done: list[int] = []
    write_merge(recipe, merged, tmp_path / "out", max_shard=100_000, advance=done.append)
    written = open_checkpoint(tmp_path / "out")
    assert dict(written.source.tensors).keys() == dict(merged.source.tensors).keys()
    for name, info in merged.source.tensors.items():
        assert written.source.tensors[name].shape == info.shape
        assert np.array_equal(
            written.source.read_rows(name, 0, info.n_rows), merged.source.read_rows(name, 0, info.n_rows)
        )
    assert written.config == merged.config
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 3
    assert sum(done) < sum(shard.stat().st_size for shard in shards) < sum(done) + 10_000
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "base" / "tokenizer.json").read_bytes()
    assert (tmp_path / "out" / "mergekit_moe_config.yml").read_text() == recipe.source
    assert "Attention, norms and embeddings" in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out.partial").exists()


def test_the_hub_reads_the_card(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    merged = replace(open_recipe(recipe), license="apache-2.0", parents=(Parent("base", repo="us/base"),))
    card = ModelCard(merge_card(recipe, merged))
    data = card.data.to_dict()
    assert (data["license"], data["base_model"], data["library_name"]) == ("apache-2.0", ["us/base"], "transformers")
    assert "moe" in data["tags"] and f"# {recipe.name}" in card.text
    assert "base_model" not in ModelCard(merge_card(recipe, replace(merged, parents=()))).data.to_dict()


def test_other_libraries_read_it(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    write_merge(recipe, open_recipe(recipe), tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()
    with safe_open(tmp_path / "out" / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert len(list(file.keys())) == len(open_recipe(recipe).source.tensors)


def test_the_index_is_transformers(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    write_merge(recipe, open_recipe(recipe), tmp_path / "out", max_shard=150_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        2 * np.prod(i.shape) for i in open_recipe(recipe).source.tensors.values()
    )
    assert set(index["weight_map"].values()) == {path.name for path in (tmp_path / "out").glob("*.safetensors")}


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    merged = open_recipe(recipe)
    write_merge(recipe, merged, tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        write_merge(recipe, merged, tmp_path / "out")
    write_merge(recipe, merged, tmp_path / "out", force=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "diary.txt").write_text("mine")
    with pytest.raises(OutputError, match="is no checkpoint, so --force does not replace it"):
        write_merge(recipe, merged, other, force=True)
    with pytest.raises(OutputError, match="is a file"):
        write_merge(recipe, merged, tmp_path / "recipe.yml", force=True)


@pytest.mark.parametrize("place", ["base", "expert-1", "."])
def test_the_merge_never_replaces_what_it_reads(tmp_path: Path, place: str) -> None:
    recipe = small_recipe(tmp_path)
    with pytest.raises(OutputError, match="which the merge reads"):
        write_merge(recipe, open_recipe(recipe), tmp_path / place, force=True)


def test_a_failed_merge_leaves_nothing(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    merged = open_recipe(recipe)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="out: interrupted; the merge was not written, and nothing"):
        write_merge(recipe, merged, tmp_path / "out", advance=stop)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_a_merge_that_stops_while_it_is_named_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path)
    merged = open_recipe(recipe)
    write_merge(recipe, merged, tmp_path / "out")
    rename = Path.rename

    def stop(path: Path, target: Path) -> Path:
        if path.name == "out.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(Interrupted):
        write_merge(recipe, merged, tmp_path / "out", force=True)
    assert open_checkpoint(tmp_path / "out").source.tensors
    assert not (tmp_path / "out.partial").exists() and not (tmp_path / "out.replaced").exists()


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputError, match="is the current folder"):
        write_merge(recipe, open_recipe(recipe), Path("."))


def test_noise_is_seeded_and_of_its_scale(tmp_path: Path) -> None:
    path = write_case(tmp_path, CASES["mixtral-llama-undeclared"])
    fields = json.loads(path.read_text()) | {"gate_mode": "random", "seed": 3}
    fields["experts"][1]["noise_scale"] = 0.01

    def rows(seed: int, start: int = 0) -> np.ndarray:
        path.write_text(json.dumps(fields | {"seed": seed}))
        name = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
        return open_recipe(read_recipe(path)).source.read_rows(name, start, 96)

    plain = open_checkpoint(tmp_path / "expert-1").source.read_rows("model.layers.0.mlp.gate_proj.weight", 0, 96)
    noise = rows(3) - plain
    assert 0.0095 < noise.std() < 0.0105 and abs(noise.mean()) < 0.0005
    assert np.array_equal(rows(3), rows(3)) and not np.array_equal(rows(3), rows(4))
    assert np.array_equal(rows(3, 50), rows(3)[50:])
