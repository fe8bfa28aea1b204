"""What a merge says about itself reaches the GGUF: its parents, its size; and what it lost is said aloud."""

from pathlib import Path
from typing import Any

import gguf
import pytest

from ..checkpoints import Tiny, write_checkpoint
from ..command import convert

PARENTS = ("example-org/Tiny-Bruce-1M-Instruct-v0.2", "udkai/Turdus", "leveldevai/TurdusBeagle-7B")
RECIPE = """base_model: {0}
gate_mode: hidden
dtype: bfloat16
experts:
  - source_model: {1}
    positive_prompts: ["a question"]
  - source_model: {2}
    positive_prompts: ["a story"]
"""


def fields(path: Path) -> dict[str, Any]:
    """Return all metadata of a GGUF."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def parents(tmp_path: Path, extra: dict[str, str], folder: str) -> dict[str, Any]:
    """Convert a checkpoint with further files and return what the GGUF says of its parents."""
    source = write_checkpoint(tmp_path / folder, Tiny(n_layer=1, n_expert=2), extra)
    target = tmp_path / f"{folder}.gguf"
    assert convert(source, target).status == 0
    return {key: value for key, value in fields(target).items() if key.startswith("general.base_model.")}


@pytest.mark.parametrize("name", ["mergekit_moe_config.yml", "mergekit_config.yml"])
def test_parents_of_a_recipe_are_named_as_those_of_a_model_card(name: str, tmp_path: Path) -> None:
    card = "---\nbase_model:\n" + "".join(f"- {parent}\n" for parent in PARENTS) + "---\n"
    named = parents(tmp_path, {"README.md": card}, "card")
    assert named["general.base_model.count"] == 3
    assert named["general.base_model.1.repo_url"] == "https://huggingface.co/udkai/Turdus"
    assert parents(tmp_path, {name: RECIPE.format(*PARENTS)}, "recipe") == named


def test_a_parent_is_named_once_and_a_folder_has_no_address(tmp_path: Path) -> None:
    recipe = RECIPE.format("udkai/Turdus", "udkai/Turdus", "/models/my own model")
    named = parents(tmp_path, {"mergekit_moe_config.yml": recipe}, "recipe")
    assert named["general.base_model.count"] == 2
    assert named["general.base_model.1.name"] == "my own model"
    assert "general.base_model.1.repo_url" not in named


def test_a_recipe_that_is_not_yaml_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", Tiny(n_layer=1), {"mergekit_moe_config.yml": "experts: [\n- a: b"})
    outcome = convert(source, tmp_path / "out.gguf")
    assert outcome.status == 1 and "mergekit_moe_config.yml" in outcome.stderr and outcome.stderr.count("\n") == 1


def test_size_label_says_experts_times_dense(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", Tiny(n_layer=2, n_embd=64, n_ff=512, n_expert=3))
    assert convert(source, tmp_path / "out.gguf").status == 0
    attention = 2 * 64 * 64 + 2 * 64 * 32
    dense = 2 * 512 * 64 + 2 * (attention + 2 * 64 + 3 * 512 * 64) + 64 + 2 * 3 * 64
    assert fields(tmp_path / "out.gguf")["general.size_label"] == f"3x{round(dense / 1000)}K"


def test_a_pre_tokenizer_that_the_merge_lost_is_a_warning(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", Tiny(n_layer=1, layout="dense", tokenizer="smollm"))
    recipe = {"mergekit_moe_config.yml": RECIPE.format(base, base, base)}
    kept = write_checkpoint(tmp_path / "kept", Tiny(n_layer=1, tokenizer="smollm"), recipe)
    lost = write_checkpoint(tmp_path / "lost", Tiny(n_layer=1, tokenizer="gpt-2"), recipe)
    assert convert(kept, tmp_path / "kept.gguf").stderr == ""
    outcome = convert(lost, tmp_path / "lost.gguf")
    assert outcome.status == 0
    assert outcome.stderr.startswith("warning: ") and outcome.stderr.count("\n") == 1
    assert str(base) in outcome.stderr and "pre-tokenizer" in outcome.stderr
