"""tokenizer.model as sentencepiece itself reads it, and texts as it cuts them (oracles/sentencepiece_reader.py)."""

import json
from pathlib import Path

import pytest
from gguf import TokenType
from moe_gguf.formats.sentencepiece_encoder import encode
from moe_gguf.formats.sentencepiece_file import SentencePieceModel, read_sentencepiece

from ..tiny_tokenizers import spm_model

GOLDEN = json.loads((Path(__file__).parent / "golden" / "sentencepiece.json").read_text(encoding="utf-8"))


@pytest.fixture
def model(tmp_path: Path) -> SentencePieceModel:
    """The tiny model, read by us."""
    (tmp_path / "tokenizer.model").write_bytes(spm_model(len(GOLDEN["pieces"])))
    return read_sentencepiece(tmp_path / "tokenizer.model")


def test_pieces_scores_and_kinds_are_those_that_sentencepiece_reads(model: SentencePieceModel) -> None:
    ours = [[piece.text, piece.score, TokenType(piece.type).name.lower()] for piece in model.pieces]
    assert ours == GOLDEN["pieces"]


@pytest.mark.parametrize("number", range(len(GOLDEN["texts"])))
def test_texts_are_cut_as_sentencepiece_cuts_them(model: SentencePieceModel, number: int) -> None:
    assert encode(model, {}, GOLDEN["texts"][number]) == GOLDEN["ids"][number]
