"""The text that ships: complete, balanced, and through the model's own template."""

from pathlib import Path

from moe_gguf.jobs import imatrix as job
from moe_gguf.jobs.loading import LoadRequest
from moe_gguf.measure.calibration_text import FOLDER, KINDS, pieces, shipped_text
from moe_gguf.runner.model import Model


def test_nothing_of_the_text_gets_lost(tiny: Model) -> None:
    text = shipped_text(tiny)
    for kind in KINDS:
        content = (FOLDER / f"{kind}.txt").read_text(encoding="utf-8")
        assert "".join("".join(pieces(content)).split()) == "".join(content.split())
        assert all(piece in text.text for piece in pieces(content))
    assert "<|im_start|>user\nMy houseplant has yellow leaves." in text.text and text.special


def test_the_first_part_has_some_of_every_kind(tiny: Model) -> None:
    first = shipped_text(tiny).text[:12_000]
    assert "```" in first and "<|im_start|>" in first and "moe-gguf" in first and "kitchen" in first


def test_it_is_what_imatrix_reads_by_default(tiny_path: Path, tmp_path: Path) -> None:
    request = job.Request(tiny_path, tmp_path / "i.gguf", n_ctx=64, n_chunk=3, load=LoadRequest(n_threads=1))
    report = job.run(job.prepare(request))
    assert report.datasets == ("moe-gguf calibration text",) and report.n_chunk == 3
