"""After writing, the file is loaded and asked: a good one passes with any tokenizer, a sick one gets no name."""

from pathlib import Path

import pytest

from ..checkpoints import Tiny, write_checkpoint
from ..command import moe_gguf
from .broken_models import EXPERT
from .damage import SMALL, poisoned

KINDS = ("smollm", "gpt-2", "llama-bpe", "qwen2", "spm.json", "spm.model", "spm.both")


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_conversion_passes_with_every_tokenizer(kind: str, tmp_path: Path) -> None:
    tiny = Tiny(tokenizer=kind, n_vocab=330, n_token=320, n_embd=32, n_ff=32)
    target = tmp_path / "out.gguf"
    outcome = moe_gguf("convert", write_checkpoint(tmp_path / "tiny", tiny), "-o", target)
    assert outcome.status == 0, outcome.stderr
    assert target.exists()


def test_a_model_that_computes_nan_is_a_warning_if_it_was_allowed(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", SMALL)
    poisoned(EXPERT.format("w3"), 5, float("nan"))(source)
    outcome = moe_gguf("convert", source, "-o", tmp_path / "out.gguf", "--allow-nonfinite", "-q")
    assert outcome.status == 0 and "not finite" in outcome.stderr and outcome.stderr.count("\n") == 1
    assert (tmp_path / "out.gguf").exists()
