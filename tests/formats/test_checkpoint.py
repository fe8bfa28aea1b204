"""Checkpoint folders: one file or shards, an index that must agree with them, and the parents of a merge."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from moe_gguf.convert.build_plan import build_plan
from moe_gguf.formats.checkpoint import Parent, open_checkpoint, open_tensors, parent_of, read_parents
from moe_gguf.formats.errors import CheckpointError
from moe_gguf.formats.safetensors import SafetensorsFile
from moe_gguf.formats.weight_files import INDEX_FILE
from safetensors.numpy import load_file

from ..checkpoints import Tiny, tensors, write_checkpoint, write_safetensors
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
    assert "download or copy the weights" in refusal(tmp_path, open_checkpoint)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("pytorch_model-00001-of-00002.bin", "1 of 2 shards are there, and no pytorch_model.bin.index.json"),
        ("model-q4_k_m.gguf", "model-q4_k_m.gguf is there, GGUF, already converted"),
        ("adapter_model.safetensors", "it is a LoRA adapter, not a model"),
        ("consolidated.00.pth", "Meta's own format"),
        ("tf_model.h5", "TensorFlow"),
        ("weights.safetensors", "call the file model.safetensors"),
    ],
)
def test_other_files_are_called_what_they_are(file: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).touch()
    assert words in refusal(tmp_path, open_checkpoint)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "a LoRA adapter, not a model" in refusal(tmp_path, open_checkpoint)


def test_a_single_file_comes_before_an_index_of_another_saving(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "Model", TINY)
    old = {"weight_map": {NORM: FIRST, "old.weight": "model-00002-of-00003.safetensors"}}
    (folder / INDEX_FILE).write_text(json.dumps(old))
    checkpoint = open_checkpoint(folder)
    assert set(checkpoint.source.tensors) == set(SafetensorsFile(folder / "model.safetensors").tensors)
    assert len(checkpoint.notes) == 1
    assert "model.safetensors is read" in checkpoint.notes[0] and INDEX_FILE in checkpoint.notes[0]
    assert build_plan(checkpoint).warnings[0] == checkpoint.notes[0]


def test_an_index_of_other_shards_than_those_here_is_named_with_them(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "Model", SHARDED)
    change_index(lambda m: m.update(dict.fromkeys(m, "model-00001-of-00002.safetensors")))(folder)
    line = refusal(folder, open_checkpoint)
    assert "model-00001-of-00002.safetensors: missing shard" in line and f"{FIRST} is here" in line
    assert f"delete {INDEX_FILE}" in line


def test_names_that_only_the_index_has_matter_when_they_are_needed(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "Model", SHARDED)
    change_index(lambda m: m.update({"model.layers.0.self_attn.rotary_emb.inv_freq": FIRST, "x": FIRST}))(folder)
    assert not build_plan(open_checkpoint(folder)).warnings
    path = folder / "model-00003-of-00003.safetensors"
    kept = {name: tensor for name, tensor in tensors(SHARDED).items() if name in SafetensorsFile(path).tensors}
    del kept[NORM]
    write_safetensors(path, kept)
    with pytest.raises(CheckpointError, match=rf"{NORM} is missing: the index says that {path.name} has it"):
        build_plan(open_checkpoint(folder))


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
