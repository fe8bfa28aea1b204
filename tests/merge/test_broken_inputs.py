"""Recipes, configs and adapters that are broken: each is one clear line, before anything is written."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moe_gguf.formats.errors import CheckpointError, MoeGgufError, OutputError, RecipeError
from moe_gguf.merge.models import open_models
from moe_gguf.merge.open import open_recipe
from moe_gguf.merge.recipe import read_recipe
from moe_gguf.merge.write import write_merge

from ..command import moe_gguf
from .test_alike import rewrite
from .test_doctor import change_json, found, texts
from .tiny_gguf import write_gguf_of
from .tiny_models import Dense, write_dense, write_lora


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("base", "one", "two")):
        write_dense(tmp_path / name, Dense(seed=seed))
    return tmp_path


def refusal(folder: Path, text: str) -> str:
    path = folder / "r.yml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        open_models(read_recipe(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base_model: 2024-99-99", "not valid YAML: month must be in 1..12"),
        ("base_model: a\nbase_model: b", "line 2: not valid YAML: 'base_model' is there twice"),
        ("{base_model: a, experts: [{source_model: b, source_model: c}]}", "'source_model' is there twice"),
        ("{base_model: {model: {path: a, revision: [1]}}, experts: [{source_model: b}]}", "the revision is [1]"),
        ('{base_model: a, experts: [{source_model: b, positive_prompts: ["\\uD800"]}]}', "not valid Unicode"),
        ("{base_model: a, experts: [{source_model: b}], seed: -1}", "seed is -1; it must be at least 0"),
        ("{base_model: a, experts: [{source_model: b, noise_scale: 1.0e+39}]}", "noise_scale must be a number"),
        (
            "{base_model: a, experts: [{source_model: b, noise_scale: much}]}",
            "noise_scale must be a number, not 'much'",
        ),
        (
            "{base_model: ~nobody/a, gate_mode: random, experts_per_token: 1, experts: [{source_model: b}]}",
            "~nobody/a: no such folder",
        ),
        (
            '{base_model: "a\\0", gate_mode: random, experts_per_token: 1, experts: [{source_model: b}]}',
            r"'a\x00': no such folder",
        ),
    ],
)
def test_a_broken_recipe(text: str, said: str, tmp_path: Path) -> None:
    assert said in refusal(tmp_path, text)


def test_what_other_readers_take_is_taken(folder: Path) -> None:
    """A byte order mark, and numbers that YAML 1.1 reads as text."""
    path = folder / "r.yml"
    experts = "[{source_model: one, noise_scale: 1e-3}, {source_model: two}]"
    path.write_text(f"\ufeffbase_model: base\r\ngate_mode: random\r\nexperts: {experts}\r\n", encoding="utf-8")
    recipe = read_recipe(path)
    assert recipe.experts[0].noise_scale == 0.001
    assert open_recipe(recipe).source.tensors


@pytest.mark.parametrize("model", ["base", "one"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("rope_scaling", value) for value in ([1], "linear")),
        *(("rope_parameters", value) for value in ("linear", 3)),
        *(("hidden_size", value) for value in (None, "64", 0, True)),
        *(("num_attention_heads", value) for value in (0, "4", [4])),
        *((key, "2") for key in ("num_hidden_layers", "num_key_value_heads", "head_dim", "vocab_size")),
        *((key, ["x"]) for key in ("model_type", "torch_dtype", "dtype", "hidden_act")),
    ],
)
def test_a_config_of_another_kind(model: str, key: str, value: Any, folder: Path) -> None:
    change_json(folder / model / "config.json", **{key: value})
    with pytest.raises(CheckpointError, match=rf"{model}/config\.json: {key} is ".replace("/", r"[/\\]")):
        found(folder, ["one", "two"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rank_pattern", [1]),
        ("rank_pattern", {"(": 4}),
        ("alpha_pattern", "x"),
        ("lora_alpha", None),
        ("lora_alpha", True),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("r", 0),
        ("r", "4"),
    ],
)
def test_an_adapter_with_a_broken_config(key: str, value: Any, folder: Path) -> None:
    write_lora(folder / "lora", Dense(), 5, **{key: value})
    with pytest.raises(RecipeError, match="lora") as caught:
        found(folder, ["base+lora", "two"])
    assert "\n" not in str(caught.value)


def test_texts_that_are_missing_are_found_by_the_check(folder: Path) -> None:
    (folder / "one.txt").write_text("a text")
    entries = [{"source_model": name, "positive_texts": [f"{name}.txt"]} for name in ("one", "two")]
    (folder / "r.yml").write_text(json.dumps({"base_model": "base", "gate_mode": "calibrated", "experts": entries}))
    outcome = moe_gguf("merge", folder / "r.yml", "--check")
    assert (outcome.status, outcome.stderr) == (1, "moe-gguf: r: expert two: text two.txt: no such file\n")


def test_prompts_that_say_nothing(folder: Path) -> None:
    assert "expert e1 has an empty prompt" in texts(found(folder, ["one", "two"], [["a"], ["b", " "]]))


def test_a_base_without_a_tokenizer(folder: Path) -> None:
    for path in (folder / "base").glob("tokenizer*"):
        path.unlink()
    assert "base: the base has no tokenizer, so the merge will have none" in texts(found(folder, ["one", "two"]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_not_merged(value: float, folder: Path) -> None:
    rewrite(folder / "one" / "model.safetensors", model_layers_1_mlp_up_proj_weight=(20, 5, value))
    experts = "[{source_model: one}, {source_model: two}]"
    (folder / "r.yml").write_text(f"{{base_model: base, gate_mode: random, experts: {experts}}}")
    recipe = read_recipe(folder / "r.yml")
    with pytest.raises(CheckpointError, match=r"NaN or infinity in .*experts\.0\.w3\.weight .*row 20, column 5"):
        write_merge(recipe, open_recipe(recipe), folder / "out")
    assert not (folder / "out").exists() and not (folder / "out.partial").exists()


def test_places_where_nothing_can_lie(folder: Path) -> None:
    experts = "[{source_model: one}, {source_model: two}]"
    (folder / "r.yml").write_text(f"{{base_model: base, gate_mode: random, experts: {experts}}}")
    recipe = read_recipe(folder / "r.yml")
    with pytest.raises(OutputError, match="is a file, so nothing can lie in it"):
        write_merge(recipe, open_recipe(recipe), folder / "r.yml" / "deeper")
    if os.name == "posix":
        (folder / "loop").symlink_to("loop")
        with pytest.raises(MoeGgufError, match="is a link that leads nowhere"):
            write_merge(recipe, open_recipe(recipe), folder / "loop")


def test_regate_replaces_no_file_that_is_no_gguf(tmp_path: Path) -> None:
    from moe_gguf.formats.gguf_file import read_gguf
    from moe_gguf.merge.gates import save_gates
    from moe_gguf.merge.regate import read_routers

    model = write_gguf_of(tmp_path, "mixtral-mistral")
    save_gates(tmp_path / "gates", read_routers(read_gguf(model)), {})
    config = tmp_path / "models" / "base" / "config.json"
    outcome = moe_gguf("regate", model, tmp_path / "gates", "-o", config, "-f")
    assert outcome.status == 1 and "exists and is no GGUF file" in outcome.stderr
    assert json.loads(config.read_text())
    for name in ("x.gguf.partial", "x.gguf.journal"):
        (tmp_path / name).write_text("unfinished")
    outcome = moe_gguf("regate", model, tmp_path / "gates", "-o", tmp_path / "x.gguf", "-f")
    assert outcome.status == 1 and "an unfinished convert or quantize run writes here" in outcome.stderr
    assert (tmp_path / "x.gguf.partial").read_text() == "unfinished"
