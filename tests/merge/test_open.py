"""What recipes cannot be merged, each told in one line; and what a config.json leaves unsaid."""

import json
from pathlib import Path
from typing import Any

import pytest
from moe_gguf.formats.errors import CheckpointError, MoeGgufError, RecipeError
from moe_gguf.merge.families import complete_config
from moe_gguf.merge.models import open_models
from moe_gguf.merge.open import open_recipe, parents_of
from moe_gguf.merge.recipe import Recipe, read_recipe

from .tiny_models import Dense, write_dense


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dense(tmp_path / "base", Dense())
    write_dense(tmp_path / "one", Dense(seed=2))
    return tmp_path


def recipe(folder: Path, *experts: str, **fields: Any) -> Recipe:
    path = folder / "recipe.yml"
    entries = [{"source_model": expert} for expert in experts]
    path.write_text(json.dumps({"base_model": "base", "gate_mode": "random", "experts": entries} | fields))
    return read_recipe(path)


@pytest.mark.parametrize(
    ("dense", "message"),
    [
        (Dense("qwen2", seed=2), "different architectures \\(llama, qwen2\\)"),
        (Dense(seed=2, n_layer=3), "expert other has 3 layers, the base 2"),
        (Dense(seed=2, n_ff=128), r"expert other does not have the base's shape: .* is \[128, 64\], not \[96, 64\]"),
    ],
)
def test_experts_that_do_not_fit(folder: Path, dense: Dense, message: str) -> None:
    write_dense(folder / "other", dense)
    with pytest.raises(RecipeError, match=message):
        open_recipe(recipe(folder, "one", "other"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "qwen3"}, "architecture 'qwen3' cannot be made of llama models; try mixtral, deepseek"),
        (
            {"architecture": "mixtral", "shared_experts": [{"source_model": "one"}]},
            "1 shared experts do not fit: mixtral",
        ),
        ({"shared_experts": [{"source_model": "one"}] * 2}, "2 shared experts do not fit"),
        (
            {
                "architecture": "deepseek",
                "shared_experts": [{"source_model": "one", "positive_prompts": ["x"]}],
            },
            "deepseek does not gate its shared expert",
        ),
        ({"base_model": "nowhere"}, "nowhere: no such folder, and not a hub id"),
    ],
)
def test_recipes_that_ask_for_what_cannot_be(folder: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(MoeGgufError, match=message):
        open_recipe(recipe(folder, "one", "base", **fields))


def test_other_models_cannot_be_mixed(folder: Path) -> None:
    for name in ("base", "one"):
        path = folder / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "mamba"}))
    with pytest.raises(RecipeError, match="no mixture can be made of mamba models; known are llama, mistral, qwen2"):
        open_recipe(recipe(folder, "one", "base"))


def test_the_layout_must_exist(folder: Path) -> None:
    with pytest.raises(RecipeError, match="deepseek has no fused layout"):
        open_recipe(recipe(folder, "one", "base", architecture="deepseek"), layout="fused")


def test_a_missing_tensor_is_named(folder: Path) -> None:
    path = folder / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    write_dense(folder / "one", Dense(seed=2), num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"base: tensor model\.layers\.2\.input_layernorm\.weight is missing"):
        open_recipe(recipe(folder, "one", "one"))


def test_a_folder_beside_the_recipe_comes_before_one_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = folder / "here"
    write_dense(here / "one", Dense(seed=9))
    monkeypatch.chdir(here)
    models = open_models(recipe(folder, "one", "base"))
    assert [model.checkpoint.folder for model in models.values()] == [folder / "base", folder / "one"]


def test_hub_ids_are_fetched_once_each_and_become_parents(folder: Path) -> None:
    asked: list[tuple[str, str | None]] = []

    def fetch(repo: str, revision: str | None) -> Path:
        asked.append((repo, revision))
        return folder / repo.rpartition("/")[2]

    wanted = recipe(folder, "us/one@v2", "us/base", base_model="us/base")
    models = open_models(wanted, fetch)
    assert asked == [("us/base", None), ("us/one", "v2")]
    assert [(parent.name, parent.repo) for parent in parents_of(wanted, models)] == [
        ("base", "us/base"),
        ("one", "us/one"),
    ]


def test_what_config_json_leaves_unsaid_is_written_out() -> None:
    sizes = {"num_attention_heads": 8, "hidden_size": 64}
    llama = complete_config({"model_type": "llama", **sizes})
    assert (llama["rope_theta"], llama["rms_norm_eps"], llama["num_key_value_heads"]) == (10000.0, 1e-6, 8)
    assert complete_config({"model_type": "mistral", **sizes})["num_key_value_heads"] == 8
    assert complete_config({"model_type": "qwen3", **sizes})["head_dim"] == 128
    assert "rope_theta" not in complete_config({"model_type": "llama", **sizes, "rope_parameters": {"rope_theta": 5.0}})
