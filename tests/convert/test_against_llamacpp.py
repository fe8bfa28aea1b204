"""The GGUF we write holds what llama.cpp's converter writes for the same checkpoint: metadata, types, shapes, bytes."""

import json
from pathlib import Path
from typing import Any

import pytest

from ..command import convert
from ..oracles.cases import CONVERSIONS
from ..oracles.llamacpp_converter import GOLDEN, describe

EXPECTED: dict[str, dict[str, Any]] = json.loads(GOLDEN.read_text(encoding="utf-8"))

NO_SPACE = {"tokenizer.ggml.add_space_prefix": "llama.cpp writes it for Llama's kin; it means nothing to BPE"}
DIFFERENT: dict[str, dict[str, str]] = {
    "sentencepiece json": {
        "tokenizer.ggml.scores": "llama.cpp writes -1000 for all; ours come from merge ranks",
        "tokenizer.ggml.token_type": "llama.cpp takes <unk> for a control token; ours is that of tokenizer.model",
    },
    "code llama's vocabulary": {
        "tokenizer.ggml.prefix_token_id": "llama.cpp's converter means to write it and skips it",
        "tokenizer.ggml.suffix_token_id": "llama.cpp's converter means to write it and skips it",
        "tokenizer.ggml.middle_token_id": "llama.cpp's converter means to write it and skips it",
    },
    "olmoe": NO_SPACE,
    "olmoe, q8_0": NO_SPACE,
}
"""Metadata that deliberately differs from llama.cpp's, by case and key, with the reason."""


def test_every_case_has_its_golden_result() -> None:
    assert list(EXPECTED) == list(CONVERSIONS)


@pytest.fixture(scope="module", params=list(CONVERSIONS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a case's name, our result and llama.cpp's."""
    name: str = request.param
    folder: Path = tmp_path_factory.mktemp("case")
    target = folder / "out.gguf"
    outcome = convert(CONVERSIONS[name].write(folder), target, "--outtype", CONVERSIONS[name].outtype)
    assert outcome.status == 0, outcome.stderr
    return name, describe(target), EXPECTED[name]


def test_tensors_are_the_same(pair: Any) -> None:
    _, ours, theirs = pair
    # llama.cpp keeps the order of the shards; ours does not depend on how a checkpoint was cut.
    assert sorted(ours["tensors"]) == sorted(theirs["tensors"])


def test_metadata_is_the_same_in_the_same_order(pair: Any) -> None:
    name, ours, theirs = pair
    different = DIFFERENT.get(name, {})
    assert [entry for entry in ours["metadata"] if entry[0] not in different] == [
        entry for entry in theirs["metadata"] if entry[0] not in different
    ]


def test_deliberate_differences_are_real(pair: Any) -> None:
    name, ours, theirs = pair
    our_values, their_values = ({key: value for key, _, value in each["metadata"]} for each in (ours, theirs))
    for key in DIFFERENT.get(name, {}):
        assert our_values[key] != their_values.get(key)


def test_a_sentencepiece_vocabulary_has_its_own_types_from_either_file(tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    assert convert(CONVERSIONS["sentencepiece json"].write(tmp_path), target).status == 0
    ours = {key: value for key, _, value in describe(target)["metadata"]}
    theirs = {key: value for key, _, value in EXPECTED["sentencepiece model"]["metadata"]}
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
        assert ours[key] == theirs[key]
