"""The card: every number on it is the manifest's, its front matter the Hub's, and what is not known is not told."""

import html
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from moe_gguf.formats.errors import ReleaseError
from moe_gguf.release import card
from moe_gguf.release.card import card_text
from moe_gguf.release.manifest import Evaluation, Manifest, OtherFile, Published, manifest_text, read_manifest

DOCS = Path(__file__).parents[2] / "docs"
MANIFEST = read_manifest(DOCS / "example-release" / "manifest.json")
RECIPE = (DOCS / "example-release" / "recipe.yml").read_text("utf-8")
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?")


def test_the_example_is_what_its_manifest_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    from make_example import as_example  # pyright: ignore[reportMissingImports]

    assert (DOCS / "example-card.md").read_text("utf-8") == as_example(card_text(MANIFEST, RECIPE))
    assert manifest_text(MANIFEST) == (DOCS / "example-release" / "manifest.json").read_text("utf-8")


def values(value: Any) -> Iterator[Any]:
    """Yield every number and text in a manifest."""
    if is_dataclass(value):
        for one in fields(value):
            yield from values(getattr(value, one.name))
    elif isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from values(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from values(one)
    elif value is not None:
        yield value


def spelled(manifest: Manifest) -> set[str]:
    """Return every number that the card may have: those of the manifest, as its filters spell them, or in its texts."""
    ways = (card.number, card.gigabytes, card.billions, card.percent, card.whole_percent, card.nats, card.two)
    allowed: set[str] = set()
    for value in values(manifest):
        if isinstance(value, str):
            allowed |= set(NUMBER.findall(value))
        elif not isinstance(value, bool):
            allowed |= {found for way in ways for found in NUMBER.findall(way(value))}
            allowed.add(f"{value:.0f}")
    return allowed


def prose(text: str) -> str:
    """Return the card without the recipe, which is a file of its own, and without a name that looks like a number."""
    return html.unescape(re.sub(r"```yaml.*?```", "", text, flags=re.DOTALL)).replace("SHA-256", "")


def test_every_number_is_the_manifests() -> None:
    found = NUMBER.findall(prose(card_text(MANIFEST, RECIPE)))
    assert len(found) > 100
    assert not set(found) - spelled(MANIFEST)


def test_no_sentence_brings_a_number_of_its_own() -> None:
    source = re.sub(r"\{[{%#].*?[%}#]\}", "", card.TEMPLATE.read_text("utf-8"), flags=re.DOTALL)
    assert not NUMBER.findall(prose(source))


def test_the_hub_reads_the_front_matter() -> None:
    results = (Published("ARC-Challenge", 25, "acc_norm", 72.01),)
    model = replace(
        MANIFEST.model, base_models=("a/b", "c/d"), base_model_relation="merge", quantized_by="me", published=results
    )
    measured = (Evaluation("SmolBruce-4x135M-Q8_0", "HellaSwag", 10, "acc_norm", 0.4321, 0.01),)
    read = ModelCard(card_text(replace(MANIFEST, model=model, evaluations=measured), RECIPE))
    data = read.data.to_dict()
    assert data["base_model"] == ["a/b", "c/d"] and data["base_model_relation"] == "merge"
    assert data["quantized_by"] == "me" and data["license"] == "apache-2.0" and data["language"] == ["en", "de"]
    assert data["library_name"] == "gguf" and {"gguf", "moe", "merge"} <= set(data["tags"])
    assert "| SmolBruce-4x135M-Q8_0 | HellaSwag | 10 | acc_norm | 43.21 % ± 1.00 % |" in read.text
    result, ours = getattr(read.data, "eval_results")  # noqa: B009 (the type of card data is not ModelCardData's)
    assert result.metric_value == 72.01 and "as published" in result.metric_name
    assert ours.metric_value == 43.21 and ours.metric_name.endswith("measured on SmolBruce-4x135M-Q8_0")
    assert "not measured for this page" in " ".join(read.text.split())


def test_what_was_not_measured_is_not_told() -> None:
    files = tuple(replace(file, quality=None, room=(), fits=()) for file in MANIFEST.files)
    bare = replace(
        MANIFEST, files=files, reference=None, routes=None, speed=None, machines=(), recipe=None, calibration=None
    )
    text = card_text(replace(bare, others=(), judgements=()))
    for word in ("KL divergence", "tokens a second", "same top", "expert |", "plots/", "laptop", "gates"):
        assert word not in text
    assert "| [Q8_0](SmolBruce-4x135M-Q8_0.gguf) |" in text and "rounded plainly" in text
    assert not set(NUMBER.findall(prose(text))) - spelled(bare)


def test_a_file_that_another_beats_is_told_so() -> None:
    best = next(file for file in MANIFEST.files if file.type == "Q8_0")
    other = OtherFile(
        "Other-Q8_0.gguf", best.bytes + 1, 8.5, (), "Q8_0", best.quality and replace(best.quality, kld=1.0)
    )
    text = card_text(replace(MANIFEST, against=(other,)), RECIPE)
    line = next(line for line in text.splitlines() if line.startswith("| Other-Q8_0.gguf"))
    assert "is smaller and closer" in line


def test_a_users_template_is_given_the_manifest(tmp_path: Path) -> None:
    path = tmp_path / "card.md"
    path.write_text("---\n{{ front_matter }}\n---\n# {{ manifest.model.title }}: {{ files[0].bytes | gigabytes }}\n")
    assert ModelCard(card_text(MANIFEST, RECIPE, path)).content.endswith(" GB\n")
    path.write_text("# {{ manifest.nothing.here }}")
    with pytest.raises(ReleaseError, match="template of the card fails"):
        card_text(MANIFEST, RECIPE, path)
    path.write_text("\n{% if %}")
    with pytest.raises(ReleaseError, match="line 2"):
        card_text(MANIFEST, RECIPE, path)
