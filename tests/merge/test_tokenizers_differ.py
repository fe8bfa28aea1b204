"""The merge doctor and tokenizers: any file format against any other, and what differs with its ids on both sides."""

import json
from pathlib import Path

import pytest

from ..tiny_tokenizers import SPM_SPECIAL, added, bpe_tokenizer, spm_model, spm_pieces, spm_tokenizer, write_tokenizer
from .test_doctor import change_json, found, texts
from .tiny_models import Dense, write_dense, write_lora

N_TOKENS = 512


def write_model(folder: Path, seed: int, kind: str) -> Path:
    """Write a dense model with a tokenizer of a kind (see tiny_tokenizers), or without one for ""."""
    write_dense(folder, Dense(seed=seed))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    if kind:
        write_tokenizer(folder, kind, N_TOKENS)
    return folder


def said(folder: Path, base: str, one: str) -> str:
    """Return the findings about an expert `one` on a base, with tokenizers of these kinds; `two` has the base's."""
    for seed, (name, kind) in enumerate((("base", base), ("one", one), ("two", base))):
        write_model(folder / name, seed, kind)
    return again(folder)


def again(folder: Path) -> str:
    return texts(found(folder, ["one", "two"]))


def spread(folder: Path) -> None:
    """Write a model's tokenizer.json as vocab.json and merges.txt, as older checkpoints have it."""
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "vocab.json").write_text(json.dumps(document["model"]["vocab"]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in document["model"]["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize("base", ["spm.json", "spm.model", "spm.both"])
@pytest.mark.parametrize("one", ["spm.json", "spm.model", "spm.both"])
def test_the_same_vocabulary_in_another_format_is_no_difference(base: str, one: str, tmp_path: Path) -> None:
    assert said(tmp_path, base, one) == ""


def test_vocab_json_and_merges_are_a_tokenizer_too(tmp_path: Path) -> None:
    assert said(tmp_path, "gpt-2", "gpt-2") == ""
    spread(tmp_path / "one")
    assert again(tmp_path) == ""
    lines = (tmp_path / "one" / "merges.txt").read_text(encoding="utf-8").splitlines()
    lines[5], lines[6] = lines[6], lines[5]
    (tmp_path / "one" / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    assert "one: its tokenizer differs: it has other merges than the base, from merge 4 on: " in again(tmp_path)


@pytest.mark.parametrize("kind", ["spm.model", "spm.json"])
@pytest.mark.parametrize("file", ["added_tokens.json", "tokenizer_config.json", "tokenizer.json"])
def test_tokens_that_only_an_expert_has(kind: str, file: str, tmp_path: Path) -> None:
    assert said(tmp_path, "spm.model", kind) == ""
    folder = tmp_path / "one"
    if file == "added_tokens.json":
        (folder / file).write_text('{"<|im_end|>": 512, "<|im_start|>": 513}')
    elif file == "tokenizer_config.json":
        tokens = {"512": {"content": "<|im_end|>", "special": True}, "513": {"content": "<|im_start|>"}}
        change_json(folder / file, added_tokens_decoder=tokens)
    else:
        document = json.loads(spm_tokenizer(N_TOKENS))
        document["added_tokens"] += [added("<|im_end|>", 512), added("<|im_start|>", 513)]
        (folder / file).write_text(json.dumps(document), encoding="utf-8")
    assert again(tmp_path) == (
        "one: its tokenizer differs: 2 tokens that the base has not: 512 '<|im_end|>'; 513 '<|im_start|>'; "
        "the base's tokenizer and 512 embedding rows are taken: they become plain text"
    )


def test_a_token_that_lies_elsewhere_in_the_base(tmp_path: Path) -> None:
    said(tmp_path, "spm.model", "spm.json")
    (tmp_path / "base" / "added_tokens.json").write_text('{"<|im_start|>": 512, "<|im_end|>": 513}')
    (tmp_path / "one" / "added_tokens.json").write_text('{"<|im_end|>": 512}')
    shown = again(tmp_path)
    assert (
        "one: its tokenizer differs: 1 id stands for other tokens than in the base: 512 for '<|im_end|>' (in the base "
        "513), there for '<|im_start|>'; the base's are used, so this expert will be given tokens that it learned as "
        "others" in shown
    )
    assert "1 token of the base is missing: 513 '<|im_end|>' (here 512); this expert has not learned them" in shown
    assert "two: its tokenizer differs: 2 tokens of the base are missing: 512 '<|im_start|>'; 513 '<|im" in shown


def test_other_tokenizers_altogether(tmp_path: Path) -> None:
    shown = said(tmp_path, "spm.model", "smollm")
    assert "one: its tokenizer differs: 411" in shown and "ids stand for other tokens than in the base: 0 for " in shown
    assert "there for '<unk>'; 1 for " in shown and "; and 405 more" in shown


def test_another_pre_tokenizer(tmp_path: Path) -> None:
    shown = said(tmp_path, "smollm", "gpt-2")
    assert shown.count("\n") == 0
    assert "one: its tokenizer differs: the pre-tokenizer differs" in shown and "the base's way is used" in shown


def test_a_space_before_a_text_that_only_tokenizer_json_tells_of(tmp_path: Path) -> None:
    said(tmp_path, "smollm", "smollm")
    path = tmp_path / "one" / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["pre_tokenizer"]["pretokenizers"][-1]["add_prefix_space"] = True
    path.write_text(json.dumps(document), encoding="utf-8")
    assert again(tmp_path) == (
        "one: its tokenizer differs: one of them puts a space before a text, the other does not; the base's way is used"
    )


def test_other_scores_of_the_same_pieces(tmp_path: Path) -> None:
    said(tmp_path, "spm.model", "spm.model")
    first = spm_pieces(N_TOKENS)[0][259].encode()
    model = bytearray(spm_model(N_TOKENS))
    at = model.index(first) + len(first) + 1
    model[at : at + 4] = b"\x00\x00\x80\xc2"
    (tmp_path / "one" / "tokenizer.model").write_bytes(model)
    assert "one: its tokenizer differs: 1 piece of tokenizer.model has other scores" in again(tmp_path)


def test_another_end_of_an_answer(tmp_path: Path) -> None:
    said(tmp_path, "spm.model", "spm.model")
    change_json(tmp_path / "one" / "tokenizer_config.json", eos_token="<s>")
    assert "one: its tokenizer differs: the eos token is '<s>', the base's '</s>'; what the base says" in again(
        tmp_path
    )
    tokens = {str(i): {"content": text, "special": True} for i, text in enumerate(SPM_SPECIAL)}
    for name in ("base", "one", "two"):
        change_json(tmp_path / name / "tokenizer_config.json", eos_token=None, added_tokens_decoder=tokens)
        config = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        del config["eos_token"]
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(config))
        (tmp_path / name / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}}')
    assert again(tmp_path) == ""
    (tmp_path / "one" / "special_tokens_map.json").write_text('{"eos_token": "<unk>"}')
    assert "the eos token is '<unk>', the base's '</s>'" in again(tmp_path)


def test_tokenizers_that_cannot_be_compared_are_said_once(tmp_path: Path) -> None:
    shown = said(tmp_path, "spm.model", "")
    assert shown.startswith("tokenizers cannot be compared: ") and f"{tmp_path / 'one'} has neither" in shown
    for name in ("one", "two"):
        write_tokenizer(tmp_path / name, "spm.model", N_TOKENS)
    (tmp_path / "base" / "tokenizer.model").write_bytes(b"nonsense")
    shown = again(tmp_path)
    assert shown.count("tokenizers cannot be compared") == 1 and "is damaged" in shown


def test_a_tokenizer_beside_an_adapter(tmp_path: Path) -> None:
    said(tmp_path, "smollm", "smollm")
    write_lora(tmp_path / "lora", Dense(), 5)
    (tmp_path / "lora" / "tokenizer.json").write_text(bpe_tokenizer(N_TOKENS), encoding="utf-8")
    tokens = {"512": {"content": "<tool>"}}
    config = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text()) | {"added_tokens_decoder": tokens}
    (tmp_path / "lora" / "tokenizer_config.json").write_text(json.dumps(config))
    shown = texts(found(tmp_path, ["one", "base+lora"]))
    assert shown.startswith("adapter lora: its tokenizer differs: 1 token that the base has not: 512 '<tool>'")
