"""Recipes as their users have them, and one clear line for each way to get one wrong."""

from pathlib import Path
from textwrap import dedent

import pytest
from moe_gguf.formats.errors import RecipeError
from moe_gguf.merge.recipe import ModelReference, read_recipe, recipe_from_table, recipe_yaml

BRUCE = """
base_model: leveldevai/TurdusBeagle-7B
gate_mode: hidden
dtype: bfloat16
experts:
  - source_model: leveldevai/TurdusBeagle-7B
    positive_prompts: ["Answer the question", "Reason step by step"]
  - source_model: udkai/Turdus@main+some/lora@v2
    positive_prompts:
      - "Tell a story"
    negative_prompts: ["2 + 2"]
    noise_scale: 0.01
    residual_scale: 0.5
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yml"
    path.write_text(dedent(text), encoding="utf-8")
    return path


def test_reads_what_mergekit_users_have(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, BRUCE))
    assert recipe.base_model == ModelReference("leveldevai/TurdusBeagle-7B")
    assert recipe.experts[1].source_model == ModelReference("udkai/Turdus", "some/lora", "main", "v2")
    assert (recipe.gate_mode, recipe.dtype, recipe.experts_per_token, recipe.name) == (
        "hidden",
        "bfloat16",
        2,
        "recipe",
    )
    assert recipe.experts[1].negative_prompts == ("2 + 2",)
    assert (recipe.experts[1].noise_scale, recipe.experts[1].residual_scale) == (0.01, 0.5)
    assert recipe.source == dedent(BRUCE)
    assert [str(reference) for reference in recipe.references] == [
        "leveldevai/TurdusBeagle-7B",
        "udkai/Turdus@main+some/lora@v2",
    ]


def test_yaml_of_a_recipe_reads_back_as_the_same_recipe(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, BRUCE))
    again = read_recipe(write(tmp_path, recipe_yaml(recipe)))
    assert (again.experts, again.base_model, again.dtype) == (recipe.experts, recipe.base_model, recipe.dtype)


def test_a_reference_may_be_a_mapping(tmp_path: Path) -> None:
    recipe = read_recipe(
        write(
            tmp_path,
            """
            base_model: {model: {path: a+b, revision: v1}}
            experts_per_token: 1
            gate_mode: random
            experts: [{source_model: {model: c, lora: d}}]
            """,
        )
    )
    assert recipe.base_model == ModelReference("a+b", None, "v1")
    assert recipe.experts[0].source_model == ModelReference("c", "d")


def test_experts_of_one_name_are_numbered(tmp_path: Path) -> None:
    recipe = read_recipe(
        write(
            tmp_path,
            "{base_model: a, gate_mode: random, experts: [{source_model: x/y}, {source_model: z/y}]}",
        )
    )
    assert [expert.name for expert in recipe.experts] == ["y-1", "y-2"]


def test_reads_a_table_of_the_catalogue() -> None:
    table = {
        "base_model": "a/b",
        "gate_mode": "calibrated",
        "experts": [
            {"source_model": "a/b+python", "positive_texts": ["python.txt"]},
            {"source_model": "a/b+german", "positive_prompts": ["Guten Tag"]},
        ],
    }
    recipe = recipe_from_table("smolbruce", table, Path("shipped"), "models.toml:7")
    assert (recipe.name, recipe.folder) == ("smolbruce", Path("shipped"))
    assert [expert.name for expert in recipe.experts] == ["python", "german"]
    assert "base_model: a/b" in recipe.source
    with pytest.raises(RecipeError, match=r"models\.toml:7: models\.smolbruce: unknown key 'basemodel'"):
        recipe_from_table("smolbruce", {"basemodel": "a"}, Path(), "models.toml:7")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base_model: [", "recipe.yml, line 1: not valid YAML"),
        ("- a", "a table of keys and values is needed, not a list"),
        ("base_modell: a", "unknown key 'base_modell'; did you mean 'base_model'?"),
        ("xyzzy: a", "unknown key 'xyzzy'; known are base_model, experts"),
        ("base_model: a", "experts must be a list of experts, not nothing"),
        ("{base_model: a, experts: [{source_model: b}]}", "1 expert for 2 experts per token"),
        (
            "{base_model: a, experts: [{source_model: b}, {source_model: c}]}",
            r"expert 1 \(b\) has no positive_prompts, which gate_mode hidden needs",
        ),
        (
            "{base_model: a, gate_mode: calibrated, experts: [{source_model: b}, {source_model: c}]}",
            r"expert 1 \(b\) has no positive_texts",
        ),
        (
            "{base_model: a, experts: [{source_model: b, positive_prompts: [x]}, "
            "{source_model: c, positive_prompts: [x]}]}",
            "all experts have the same prompts",
        ),
        ("{base_model: a, gate_mode: hiden, experts: [{source_model: b}]}", "did you mean 'hidden'?"),
        (
            "{base_model: a, dtype: int8, experts: [{source_model: b}]}",
            "dtype is 'int8'; it must be one of bfloat16",
        ),
        ("{base_model: a, experts_per_token: 0, experts: [{source_model: b}]}", "it must be at least 1"),
        ("{base_model: a, experts_per_token: 1.5, experts: [{source_model: b}]}", "must be a whole number"),
        ("{experts: [{source_model: b}]}", "base_model is missing"),
        ("{base_model: a, experts: [{source_modell: b}]}", "expert 1: unknown key 'source_modell'"),
        ("{base_model: a, experts: [{source_model: b+c+d}]}", "has more than one '\\+'"),
        ("{base_model: a, experts: [{source_model: '@x'}]}", "is not a model"),
        (
            "{base_model: a, experts: [{source_model: b, positive_prompts: [2024]}]}",
            r"entry 1 is a number \(2024\), not text; quote it",
        ),
        (
            "{base_model: a, experts: [{source_model: b, positive_prompts: hi}]}",
            "must be a list of texts, not text",
        ),
        ("{base_model: a, experts: [{source_model: b, noise_scale: .inf}]}", "noise_scale must be a number"),
    ],
)
def test_a_broken_recipe_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_no_text_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_bytes(b"GGUF\xff\xfe")
    with pytest.raises(RecipeError, match="not UTF-8 text"):
        read_recipe(path)
