"""Checkpoint folders: one file or shards, an index that must agree with them, and the parents of a merge."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from moe_gguf.formats.checkpoint import INDEX_FILE, Parent, open_checkpoint, open_tensors, parent_of, read_parents
from moe_gguf.formats.errors import CheckpointError
from safetensors.numpy import load_file

from ..checkpoints import Tiny, write_checkpoint
from ..refusal import refusal

TINY = Tiny(n_layer=1, n_embd=8, n_ff=8, n_vocab=320, n_expert=2, dtype="F32")
SHARDED = Tiny(n_layer=1, n_embd=8, n_ff=8, n_vocab=320, n_expert=2, dtype="F32", cuts=(4, 9))


@pytest.mark.parametrize("tiny", [TINY, SHARDED])
def test_tensors_are_those_of_all_shards(tiny: Tiny, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "Model", tiny)
    checkpoint = open_checkpoint(folder)
    expected = {name: array for path in folder.glob("*.safetensors") for name, array in load_file(path).items()}
    assert set(checkpoint.source.tensors) == set(expected)
    for name, info in checkpoint.source.tensors.items():
        rows = checkpoint.source.read_rows(name, 0, info.n_rows)
        assert (rows.reshape(info.shape) == expected[name]).all()
        assert info.where.split(" at ")[0] in {path.name for path in folder.glob("*.safetensors")}
    assert checkpoint.name == "Model" and checkpoint.config["model_type"] == "mixtral"
    assert set(checkpoint.source.identity()) == {str(path) for path in folder.glob("*.safetensors")}


def test_shards_without_an_index_are_found_and_counted(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "Model", SHARDED)
    names = set(open_tensors(folder).tensors)
    (folder / INDEX_FILE).unlink()
    assert set(open_tensors(folder).tensors) == names
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "2 of 3 shards are there" in refusal(folder, open_checkpoint)


def change_index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX_FILE).read_text())
        change(index["weight_map"])
        (folder / INDEX_FILE).write_text(json.dumps(index))

    return damage


def replace(name: str, text: str | bytes) -> Callable[[Path], None]:
    return lambda folder: void((folder / name).write_bytes(text if isinstance(text, bytes) else text.encode()))


def void(_: object) -> None:
    """Take a value that nobody wants."""


NORM, FIRST = "model.norm.weight", "model-00001-of-00003.safetensors"
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
    "a config of text": (replace("config.json", '"mixtral"'), "not a JSON object"),
    "a config cut short": (replace("config.json", '{"hidden_size": '), "not valid JSON"),
    "a deep config": (replace("config.json", '{"a":' * 99_999), "not valid JSON"),
    "a config of other bytes": (replace("config.json", b"\xff\xfe\xff"), "not valid JSON"),
    "an index without a map": (replace(INDEX_FILE, "{}"), "no weight_map"),
    "an index of numbers": (replace(INDEX_FILE, '{"weight_map": {"a": 1}}'), "no weight_map"),
    "a missing shard": (lambda folder: (folder / FIRST).unlink(), "missing shard"),
    "a shard elsewhere": (change_index(lambda m: m.update({NORM: "../x.safetensors"})), "outside the folder"),
    "an absolute shard": (change_index(lambda m: m.update({NORM: "/etc/passwd"})), "outside the folder"),
    "the folder above": (change_index(lambda m: m.update({NORM: ".."})), "missing shard"),
    "a promised tensor": (change_index(lambda m: m.update({"x": FIRST})), "tensor 'x' should be in model-00001"),
    "an unlisted tensor": (change_index(lambda m: m.pop(NORM)), f"{NORM!r} is in model-00003-of-00003.safetensors"),
    "a wrong shard": (change_index(lambda m: m.update({NORM: FIRST})), f"the index says in {FIRST}"),
    "a shard twice": (
        lambda folder: void((folder / FIRST).write_bytes((folder / FIRST.replace("1-of", "2-of")).read_bytes())),
        "is also in",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_refused(name: str, tmp_path: Path) -> None:
    damage, words = BROKEN[name]
    folder = write_checkpoint(tmp_path / "Model", SHARDED)
    damage(folder)
    line = refusal(folder, open_checkpoint)
    assert words in line and str(folder) in line


def test_folders_without_weights_say_what_they_lack(tmp_path: Path) -> None:
    assert "not a folder" in refusal(tmp_path / "nowhere", open_checkpoint)
    (tmp_path / "config.json").write_text("{}")
    assert "no model.safetensors" in refusal(tmp_path, open_checkpoint)
    (tmp_path / "pytorch_model-00001-of-00002.bin").touch()
    assert "as safetensors first" in refusal(tmp_path, open_checkpoint)


RECIPE = """
base_model: mistralai/Mistral-7B-v0.1
gate_mode: hidden
experts:
  - source_model: udkai/Turdus
  - source_model: {local}
  - source_model: mistralai/Mistral-7B-v0.1+some-one/lora.adapter
  - source_model: udkai/Turdus
"""


def test_parents_are_read_from_the_recipe_beside(tmp_path: Path) -> None:
    local = tmp_path / "models" / "mine"
    local.mkdir(parents=True)
    (tmp_path / "mergekit_moe_config.yml").write_text(RECIPE.format(local=local))
    assert read_parents(tmp_path) == (
        Parent("Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.1"),
        Parent("Turdus", "udkai/Turdus"),
        Parent("mine", None, local),
        Parent("lora.adapter", "some-one/lora.adapter"),
    )


@pytest.mark.parametrize(
    ("reference", "name", "repo"),
    [
        ("a/b", "b", "a/b"),
        ("b", "b", None),
        ("./a/b", "b", None),
        ("/models/a/b/", "b", None),
        ("C:\\models\\b", "b", None),
        ("a/b+c/d", "d", "c/d"),
        ("a/b+", "b", "a/b"),
        ("a/b/c", "c", None),
    ],
)
def test_references_are_hub_ids_or_paths(reference: str, name: str, repo: str | None, tmp_path: Path) -> None:
    assert parent_of(reference, tmp_path) == Parent(name, repo)


def test_a_folder_beside_the_recipe_is_no_hub_id(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert parent_of("a/b", tmp_path) == Parent("b", None, tmp_path / "a/b")


@pytest.mark.parametrize("text", ["", "[]", "5", "experts: 3", "experts: [1, null, {}]", "models: {a: b}"])
def test_recipes_that_name_nobody_give_no_parents(text: str, tmp_path: Path) -> None:
    (tmp_path / "mergekit_config.yml").write_text(text)
    assert read_parents(tmp_path) == ()


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "\x00", "[" * 5000, "? {a: b}\n: c\n- d", "a: !!python/none x"])
def test_recipes_that_are_no_yaml_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "mergekit_config.yml").write_text(text)
    with pytest.raises(CheckpointError, match="not valid YAML") as caught:
        read_parents(tmp_path)
    assert "\n" not in str(caught.value)
