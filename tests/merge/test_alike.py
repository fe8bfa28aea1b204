"""Experts with the same weights: found by content, whatever their files, and never claimed when a weight differs."""

from pathlib import Path

import numpy as np
import pytest
from moe_gguf.formats.safetensors import SafetensorsFile

from ..checkpoints import stored, write_safetensors
from .test_doctor import found, texts
from .tiny_models import Dense, draw, shapes, write_dense, write_lora


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dense(tmp_path / "base", Dense())
    for seed, name in ((2, "one"), (3, "two"), (2, "copy")):
        write_dense(tmp_path / name, Dense(seed=seed))
    return tmp_path


def rewrite(path: Path, **changes: tuple[int, int, float]) -> None:
    """Set weights of a safetensors file: name with _ for . to (row, column, value)."""
    source = SafetensorsFile(path)
    tensors = {}
    for name, info in source.tensors.items():
        rows = source.read_rows(name, 0, info.n_rows)
        if change := changes.get(name.replace(".", "_")):
            row, column, value = change
            rows[row, column] = np.float32(value).view(np.uint32) >> 16
        tensors[name] = (info.dtype, info.shape, rows.tobytes())
    write_safetensors(path, tensors)


def test_one_weight_that_no_sample_sees_makes_another_expert(folder: Path) -> None:
    assert "experts e0, e1 have the same weights" in texts(found(folder, ["one", "copy", "two"]))
    rewrite(folder / "copy" / "model.safetensors", model_layers_1_mlp_up_proj_weight=(20, 5, 0.5))
    assert found(folder, ["one", "copy", "two"]) == []


def test_of_three_that_look_alike_two_are(folder: Path) -> None:
    write_dense(folder / "third", Dense(seed=2))
    rewrite(folder / "copy" / "model.safetensors", model_layers_0_mlp_down_proj_weight=(20, 5, 0.5))
    assert texts(found(folder, ["one", "copy", "third", "two"])) == "experts e0, e2 have the same weights"


def test_a_copy_of_the_base_is_found_by_its_weights(folder: Path) -> None:
    write_dense(folder / "renamed", Dense())
    assert texts(found(folder, ["one", "renamed"])) == "expert e1 has the base's weights"
    rewrite(folder / "renamed" / "model.safetensors", model_layers_1_mlp_up_proj_weight=(20, 5, 0.5))
    assert found(folder, ["one", "renamed"]) == []


def test_what_noise_and_scales_change_is_not_the_same(folder: Path) -> None:
    import json

    from moe_gguf.convert.vocabulary import tokenizer_differences
    from moe_gguf.merge.doctor import examine
    from moe_gguf.merge.models import open_models
    from moe_gguf.merge.recipe import recipe_from_table

    edits = ({}, {"noise_scale": 0.1}, {"noise_scale": 0.1}, {"residual_scale": 0.5}, {"residual_scale": 0.5})
    experts = [{"source_model": "base", "positive_prompts": [str(i)]} | edit for i, edit in enumerate(edits)]
    table = json.loads(json.dumps({"base_model": "base", "experts": experts}))
    recipe = recipe_from_table("r", table, folder, "here")
    assert texts(examine(recipe, open_models(recipe), tokenizer_differences)).splitlines() == [
        "expert base-1 is the base itself",
        "experts base-4, base-5 have the same weights",
    ]


def test_the_same_adapter_twice(folder: Path) -> None:
    for name in ("lora", "same"):
        write_lora(folder / name, Dense(), 5)
    write_lora(folder / "other", Dense(), 6)
    assert texts(found(folder, ["base+lora", "base+lora", "base+other"])) == "experts e0, e1 have the same weights"
    assert texts(found(folder, ["base+lora", "base+same", "one"])) == "experts e0, e1 have the same weights"
    assert found(folder, ["base+lora", "one+lora", "base+other"]) == []
    write_lora(folder / "same", Dense(), 5, lora_alpha=12)
    assert found(folder, ["base+lora", "base+same", "one"]) == []


def test_an_adapter_that_changes_nothing(folder: Path) -> None:
    zeros(folder / "zero")
    said = texts(found(folder, ["one", "one+zero", "base+zero"])).splitlines()
    assert said == [
        "experts e0, e1 have the same weights",
        "expert e2 is the base itself",
        "adapter zero changes no weight of an MLP: its expert is one as it is",
        "adapter zero changes no weight of an MLP: its expert is base as it is",
    ]


def test_negative_zeros_are_zeros(folder: Path) -> None:
    """Adding an adapter's zeros makes them positive."""
    zeros(folder / "zero")
    rewrite(folder / "one" / "model.safetensors", model_layers_0_mlp_up_proj_weight=(0, 0, -0.0))
    assert "experts e0, e1 have the same weights" in texts(found(folder, ["one", "one+zero", "two"]))


def zeros(folder: Path) -> None:
    """Write an adapter as PEFT begins its training: B is zero."""
    write_lora(folder, Dense(), 5)
    tensors = {}
    for name, shape in shapes(Dense()).items():
        if ".mlp." in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = stored(draw(5, name, (4, shape[1])), "BF16")
            tensors[f"{module}.lora_B.weight"] = stored(np.zeros((shape[0], 4), np.float32), "BF16")
    write_safetensors(folder / "adapter_model.safetensors", tensors)
