"""GGUF files written again: split, joined, with other metadata, upgraded; weights stay as they are."""

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from moe_gguf.formats.gguf_file import read_gguf

from ..checkpoints import Tiny, write_checkpoint
from ..command import convert, moe_gguf
from ..quantize.test_whole_files import separate_experts

WIDE = Tiny(n_layer=2, n_embd=256, n_ff=512, n_head=4, n_head_kv=2, n_expert=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in BF16 and in Q4_K_M."""
    folder = tmp_path_factory.mktemp("rewrite")
    write_checkpoint(folder / "Wide", WIDE)
    assert convert(folder / "Wide", folder / "bf16.gguf").status == 0
    made = moe_gguf("quantize", folder / "bf16.gguf", "--type", "Q4_K_M", "-o", folder / "q4.gguf", "-q")
    assert made.status == 0, made.stderr
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tensors(path: Path) -> dict[str, bytes]:
    """Return every tensor's bytes, read by the gguf package."""
    return {tensor.name: np.ascontiguousarray(tensor.data).tobytes() for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("how", [("--split-max-size", "300K"), ("--split-max-tensors", "7")])
def test_joined_shards_equal_the_file(folder: Path, tmp_path: Path, how: tuple[str, str]) -> None:
    done = moe_gguf("split", folder / "q4.gguf", *how, "-o", tmp_path / "part.gguf", "--json")
    assert done.status == 0, done.stderr
    shards = [Path(one["path"]) for one in json.loads(done.stdout)["outputs"][0]["shards"]]
    assert len(shards) > 2 and shards[0].name == f"part-00001-of-{len(shards):05}.gguf"
    assert set(tmp_path.iterdir()) == set(shards)
    joined = moe_gguf("join", shards[0], "-o", tmp_path / "joined.gguf")
    assert joined.status == 0 and "shards are joined" in joined.stdout
    assert digest(tmp_path / "joined.gguf") == digest(folder / "q4.gguf")


def test_an_edited_files_tensors_are_untouched(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages[0].content }}")
    target = tmp_path / "edited.gguf"
    done = moe_gguf(
        *("edit", folder / "q4.gguf", "--set", "general.license=str:mit", "--set", "llama.context_length=int:99"),
        *("--chat-template", tmp_path / "chat.jinja", "--remove", "general.size_label", "-o", target),
    )
    assert done.status == 0, done.stderr
    before, after = read_gguf(folder / "q4.gguf").metadata, read_gguf(target).metadata
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert {"general.license", "llama.context_length", "tokenizer.chat_template", "general.size_label"} == changed
    assert after["tokenizer.chat_template"] == "{{ messages[0].content }}" and "general.size_label" not in after
    assert tensors(target) == tensors(folder / "q4.gguf")


def test_old_experts_are_stacked_and_what_lacks_is_taken_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    old = separate_experts(folder / "bf16.gguf", tmp_path / "old.gguf")
    bare = tmp_path / "bare.gguf"
    keys = [key for key in read_gguf(old).metadata if key in ("tokenizer.ggml.pre", "tokenizer.chat_template")]
    removed = [word for key in keys for word in ("--remove", key)]
    assert keys and moe_gguf("upgrade", old, "-o", bare, "--no-verify").status == 0
    stripped = tmp_path / "stripped.gguf"
    assert moe_gguf("edit", bare, *removed, "-o", stripped).status == 0
    done = moe_gguf("upgrade", stripped, "--from", folder / "Wide", "-o", tmp_path / "new.gguf")
    assert done.status == 0, done.stderr
    assert all(f"{key} is taken from" in done.stdout for key in keys)
    new, reference = read_gguf(tmp_path / "new.gguf").metadata, read_gguf(folder / "bf16.gguf").metadata
    assert {key: new[key] for key in keys} == {key: reference[key] for key in keys}
    assert tensors(tmp_path / "new.gguf") == tensors(folder / "bf16.gguf")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("split", "q4.gguf", "-o", "x.gguf"), 2, "give one of --split-max-size"),
        (("edit", "q4.gguf", "-o", "x.gguf"), 2, "nothing to change"),
        (("edit", "q4.gguf", "--remove", "no.such.key", "-o", "x.gguf"), 1, "has no no.such.key"),
        (("edit", "q4.gguf", "--remove", "general.architecture", "-o", "x.gguf"), 1, "cannot be removed"),
        (("edit", "q4.gguf", "--set", "a.b=str:c", "-o", "q4.gguf"), 1, "the output is the input"),
        (("join", "q4.gguf", "-o", "bf16.gguf"), 1, "exists already"),
        (("upgrade", "q4.gguf", "--from", "other.gguf", "-o", "x.gguf"), 1, "has other tokens"),
    ],
)
def test_what_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], status: int, says: str
) -> None:
    monkeypatch.chdir(folder)
    if not Path("other.gguf").exists():
        write_checkpoint(Path("Other"), Tiny(n_vocab=300))
        assert convert(Path("Other"), Path("other.gguf")).status == 0
    before = set(folder.iterdir())
    outcome = moe_gguf(*arguments)
    assert outcome.status == status and says in outcome.stderr
    assert set(folder.iterdir()) == before
