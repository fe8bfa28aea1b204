"""A command line for mergekit-moe works as it is, or is answered with what to type here; none of it is half-read."""

from pathlib import Path

import pytest
from moe_gguf.cli.mergekit_options import FLAGS, REFUSED_FLAGS, REFUSED_VALUES, VALUES

from ..command import moe_gguf
from ..merge.cases import CASES, write_case

# The options of mergekit-moe 0.1.5 (MergeOptions in mergekit/options.py, and moe.py's own): flags, and with a value.
BOTH_WAYS = (
    *("allow-crimes", "unsafe-truncate-embeddings", "cuda", "low-cpu-memory", "copy-tokenizer", "clone-tensors"),
    *("trust-remote-code", "lazy-unpickle", "write-model-card", "safe-serialization", "read-to-gpu", "multi-gpu"),
    "async-write",
)
MERGEKIT_FLAGS = (
    *(f"--{no}{name}" for name in BOTH_WAYS for no in ("", "no-")),
    *("--gpu-rich", "--load-in-4bit", "--load-in-8bit", "--i-understand-this-is-not-useful-without-training"),
)
MERGEKIT_VALUES = (
    *("--transformers-cache", "--lora-merge-cache", "--lora-merge-dtype", "--device", "--random-seed"),
    *("--num-threads", "-j", "--write-threads"),
)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOE_GGUF_CACHE", str(tmp_path / "cache"))
    return write_case(tmp_path, CASES["mixtral-mistral"])


def test_lazy_mergekits_command_merges(recipe: Path, tmp_path: Path) -> None:
    lazy = ("--copy-tokenizer", "--allow-crimes", "--out-shard-size", "1G", "--lazy-unpickle", "--trust-remote-code")
    outcome = moe_gguf("merge", recipe, "merge", *lazy)
    assert outcome.status == 0 and (tmp_path / "merge" / "model.safetensors").is_file()
    for name in ("--copy-tokenizer", "--allow-crimes", "--lazy-unpickle", "--trust-remote-code"):
        assert f"{name} changes nothing: " in outcome.stderr
    assert "changes nothing" not in moe_gguf("merge", recipe, "--check").stderr


def test_a_size_in_bs_is_asked_about(recipe: Path, tmp_path: Path) -> None:
    for option in ("--out-shard-size", "--max-shard-size"):
        outcome = moe_gguf("merge", recipe, "merge", option, "1B")
        assert outcome.status == 1 and "write 1G for 10^9, 1 for bytes" in outcome.stderr
    assert not (tmp_path / "merge").exists()


@pytest.mark.parametrize("name", [*MERGEKIT_FLAGS, *MERGEKIT_VALUES])
def test_every_option_is_taken_or_answered(name: str, recipe: Path) -> None:
    given = [name] if name in MERGEKIT_FLAGS else [name, "8"]
    outcome = moe_gguf("merge", recipe, "--check", *given)
    refused = {**REFUSED_FLAGS, **REFUSED_VALUES}
    if name in refused:
        assert outcome.status == 2 and f"{name} is mergekit's: {refused[name]}" in outcome.stderr
    else:
        assert outcome.status == 0 and f"{name} changes nothing: {(FLAGS | VALUES)[name]}" in outcome.stderr


def test_the_folder_is_named_once(recipe: Path) -> None:
    outcome = moe_gguf("merge", recipe, "one", "-o", "two")
    assert outcome.status == 2 and "name one folder to write: one or two" in outcome.stderr
