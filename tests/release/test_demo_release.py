"""The release of the demo's model: real weights, real texts, and a card that the Hub's own library reads."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from moe_gguf.jobs.demo import prepare_base, write_recipe
from moe_gguf.release.checksums import check_checksums, read_checksums
from moe_gguf.release.manifest import read_manifest

from ..command import moe_gguf
from .small import TEXTS


@pytest.mark.slow
def test_the_demo_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_GGUF_CACHE", str(tmp_path / "cache"))
    prepare_base(tmp_path)
    recipe, folder = write_recipe(tmp_path), tmp_path / "release"
    words = ["release", recipe, "--types", "Q8_0,Q4_K_M", "-f", TEXTS / "scripture.txt", "-c", "128", "--chunks", "2"]
    done = moe_gguf(*words, "--quantized-by", "us", "-o", folder, "--json", "-q")
    assert done.status == 0, done.stderr
    report = json.loads(done.stdout)
    assert [file["type"] for file in report["files"]] == ["Q8_0", "Q4_K_M"]
    manifest = read_manifest(folder)
    eight, four = manifest.files
    assert eight.quality and four.quality and 0 < eight.quality.kld < four.quality.kld < 1
    assert eight.quality.same_top > 0.9 and manifest.reference and manifest.reference.type == "BF16"
    assert manifest.recipe and [expert.name for expert in manifest.recipe.experts][:2] == ["python", "scripture"]
    assert manifest.speed and manifest.speed.files[four.name].generated
    assert not check_checksums(folder, read_checksums(folder))
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict()["quantized_by"] == "us" and "take this one first" in card.text
    again = moe_gguf(*words, "--quantized-by", "us", "-o", folder, "--json", "-q")
    assert json.loads(again.stdout)["changed"] == []
