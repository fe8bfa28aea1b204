"""The merge doctor: what it finds, what it lets pass, and that it names the models and experts."""

import json
from pathlib import Path
from typing import Any

import pytest
from moe_gguf.convert.vocabulary import tokenizer_differences
from moe_gguf.merge.doctor import Finding, examine
from moe_gguf.merge.models import open_models
from moe_gguf.merge.recipe import read_recipe

from .tiny_models import LLAMA3_ROPE, Dense, write_dense, write_lora


def found(folder: Path, experts: list[str], prompts: list[list[str]] | None = None, **fields: Any) -> list[Finding]:
    said = prompts or [[name] for name in map(str, range(len(experts)))]
    entries = [{"source_model": model, "name": f"e{i}", "positive_prompts": said[i]} for i, model in enumerate(experts)]
    path = folder / "recipe.yml"
    path.write_text(json.dumps({"base_model": "base", "experts": entries} | fields))
    recipe = read_recipe(path)
    models = open_models(recipe)
    return examine(recipe, models, tokenizer_differences)


def texts(findings: list[Finding]) -> str:
    return "\n".join(finding.text for finding in findings)


def change_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dense(tmp_path / "base", Dense())
    write_dense(tmp_path / "one", Dense(seed=2))
    write_dense(tmp_path / "two", Dense(seed=3))
    return tmp_path


def test_a_sound_recipe_passes_without_a_word(folder: Path) -> None:
    assert found(folder, ["one", "two"]) == []


def test_experts_with_the_same_weights(folder: Path) -> None:
    write_dense(folder / "copy", Dense(seed=2))
    findings = found(folder, ["one", "copy", "two"])
    assert "experts e0, e1 have the same weights" in texts(findings)
    assert not any(finding.is_error for finding in findings)


def test_one_model_as_all_experts_is_an_error_unless_gates_are_random(folder: Path) -> None:
    findings = found(folder, ["one", "one"])
    assert findings[0].is_error and "all experts have the same weights (e0, e1)" in findings[0].text
    assert not any(finding.is_error for finding in found(folder, ["one", "one"], gate_mode="random"))


def test_the_base_as_an_expert(folder: Path) -> None:
    assert "expert e1 is the base itself" in texts(found(folder, ["one", "base"]))


def test_the_same_prompts(folder: Path) -> None:
    findings = found(folder, ["one", "two", "base"], [["a"], ["a"], ["b", "b"]])
    assert "experts e0, e1 have the same prompts" in texts(findings)
    assert "expert e2 has a prompt twice" in texts(findings)


def test_constants_that_differ(folder: Path) -> None:
    write_dense(folder / "one", Dense(seed=2, rope=tuple(LLAMA3_ROPE.items())), rms_norm_eps=1e-6, rope_theta=5e5)
    said = texts(found(folder, ["one", "two"]))
    assert "one: rms_norm_eps is 1e-06, the base's 1e-05 will be used" in said
    assert "one: its rope is" in said and "llama3" in said


def test_another_spelling_of_the_same_constants_is_no_difference(folder: Path) -> None:
    path = folder / "one" / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    path.write_text(json.dumps(config))
    assert found(folder, ["one", "two"]) == []


def test_vocabularies_and_tokenizers_that_differ(folder: Path) -> None:
    write_dense(folder / "one", Dense(seed=2, n_vocab=504))
    path = folder / "two" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    (first, second), last = list(vocab)[10:12], list(vocab)[-1]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    vocab["<|mine|>"] = vocab.pop(last)
    tokenizer["model"]["merges"].pop()
    path.write_text(json.dumps(tokenizer))
    said = texts(found(folder, ["one", "two"]))
    assert "one: 504 embedding rows, the base has 512" in said
    assert "one: its tokenizer differs: 8 tokens of the base are missing: 504 " in said and "; and 2 more; " in said
    assert f"two: its tokenizer differs: 3 ids stand for other tokens than in the base: 10 for {second!r}" in said
    assert f"10 for {second!r} (in the base 11), there for {first!r}" in said
    assert f"511 for '<|mine|>', there for {last!r}" in said
    assert "this expert will be given tokens that it learned as others" in said


def test_chat_templates_and_licences_that_differ(folder: Path) -> None:
    change_json(folder / "one" / "tokenizer_config.json", chat_template="{{ messages }}")
    change_json(folder / "two" / "tokenizer_config.json", chat_template=None)
    (folder / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base")
    (folder / "two" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Two")
    said = texts(found(folder, ["one", "two"]))
    assert "one: its tokenizer differs: the chat template differs; what the base has is used" in said
    assert "two: its tokenizer differs: it has no chat template, the base has one; what the base has" in said
    assert "licences differ: base: apache-2.0, two: cc-by-nc-4.0" in said


def test_dtypes_that_lose_something(folder: Path) -> None:
    write_dense(folder / "one", Dense(seed=2, dtype="F32"))
    assert "one is stored as F32; writing BF16 loses 16 bits of precision" in texts(found(folder, ["one", "two"]))
    said = texts(found(folder, ["one", "two"], dtype="float16"))
    assert "two is stored as BF16; writing F16 loses range" in said


def test_tensors_without_a_place(folder: Path) -> None:
    from moe_gguf.formats.safetensors import SafetensorsFile

    from ..checkpoints import stored, write_safetensors
    from .tiny_models import draw, shapes

    tensors = {name: stored(draw(1, name, shape), "BF16") for name, shape in shapes(Dense()).items()}
    name = "model.layers.0.self_attn.q_proj.bias"
    tensors[name] = stored(draw(1, name, (64,)), "BF16")
    write_safetensors(folder / "base" / "model.safetensors", tensors)
    assert name in SafetensorsFile(folder / "base" / "model.safetensors").tensors
    findings = found(folder, ["one", "two"])
    assert findings[0].is_error and "mixtral has no place for: self_attn.q_proj.bias" in findings[0].text


def test_adapters_that_change_more_than_mlps(folder: Path) -> None:
    from moe_gguf.formats.safetensors import SafetensorsFile

    from ..checkpoints import stored, write_safetensors
    from .tiny_models import draw

    write_lora(folder / "lora", Dense(), 5)
    source = SafetensorsFile(folder / "lora" / "adapter_model.safetensors")
    tensors = {
        name: (info.dtype, info.shape, source.read_rows(name, 0, info.n_rows).tobytes())
        for name, info in source.tensors.items()
    }
    module = "base_model.model.model.layers.0.self_attn.q_proj."
    tensors[module + "lora_A.weight"] = stored(draw(1, "a", (4, 64)), "BF16")
    tensors[module + "lora_B.weight"] = stored(draw(1, "b", (64, 4)), "BF16")
    write_safetensors(folder / "lora" / "adapter_model.safetensors", tensors)
    said = texts(found(folder, ["one", "base+lora"]))
    assert "adapter lora also changes a tensor outside the MLPs (model.layers.0.self_attn.q_proj.weight)" in said
