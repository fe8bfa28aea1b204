"""Ask sentencepiece what is in a tokenizer.model and how it cuts texts: `python -m tests.oracles.sentencepiece_reader`.

The file is the tiny one that the tests build. Kept are its pieces with scores and kinds, and the ids of some texts.
"""

import json
from pathlib import Path

from tests.tiny_tokenizers import spm_model

GOLDEN = Path(__file__).parents[1] / "formats" / "golden" / "sentencepiece.json"
N_TOKENS = 512
TEXTS = (
    "Hello world",
    "  two  spaces ",
    "def main():\n    return 0\n",
    "Grüße aus Köln, 東京 🙂",
    "a",
    "",
    "the theory of the other",
)


def main() -> None:
    """Read the model with sentencepiece and write the golden file."""
    import sentencepiece  # pyright: ignore[reportMissingImports]

    processor = sentencepiece.SentencePieceProcessor(model_proto=spm_model(N_TOKENS))
    kinds = ("unknown", "control", "unused", "byte")
    pieces = []
    for token in range(processor.get_piece_size()):
        kind = next((kind for kind in kinds if getattr(processor, f"is_{kind}")(token)), "normal")
        pieces.append([processor.id_to_piece(token), processor.get_score(token), kind])
    golden = {"pieces": pieces, "texts": TEXTS, "ids": [processor.encode(text) for text in TEXTS]}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(golden, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
