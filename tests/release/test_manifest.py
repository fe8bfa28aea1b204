"""The manifest: what is written is read, the same bytes each time; what does not fit the schema is named."""

import json
from pathlib import Path

import pytest
from moe_gguf.formats.errors import ReleaseError
from moe_gguf.release.manifest import (
    ExpertFacts,
    Fit,
    HashedFile,
    Manifest,
    ModelFacts,
    Options,
    Parameters,
    Quality,
    RecipeFacts,
    ReleasedFile,
    Source,
    SourceModel,
    manifest_text,
    read_manifest,
    write_manifest,
)

HASHED = HashedFile("a.gguf", 12, "0" * 64)
MANIFEST = Manifest(
    ModelFacts("a", "A", "llama", Parameters(10, 6, 8, 2, 40), 2, n_expert=4, n_expert_used=2, language=("en",)),
    {"moe-gguf": "0.1.0"},
    Source("recipe", "a", (SourceModel("base", (HASHED,)),)),
    Options(("Q4_K_M",), "plain", 45 * 10**9),
    (
        ReleasedFile(
            "a.gguf",
            "Q4_K_M",
            12,
            4.5,
            (HASHED,),
            {"output.weight": "Q6_K"},
            Quality(1.5, 0.25, 0.125, 0.5, 0.75, 0.5, 1.0, kld_by_text={"en": 0.5}),
            fits=(Fit("laptop", True, 4096, ("-c", "4096")),),
        ),
    ),
    RecipeFacts(HASHED, "base", "hidden", 2, (ExpertFacts("one", "base", positive_prompts=("Hello",)),)),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == read_manifest(path) == MANIFEST
    assert manifest_text(read_manifest(path)).encode() == path.read_bytes()
    assert MANIFEST.files[0].sha256 == "0" * 64 and MANIFEST.listed == (HASHED,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "another version"),
        ({"files": 3}, "files must be a list"),
        ({"model": {"name": "a"}}, "has no 'title'"),
        ({"options": {"types": ["Q4_K_M"], "rounding": "plain", "split_max_size": "45G"}}, "of type int"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], message: str, tmp_path: Path) -> None:
    path = write_manifest(tmp_path, MANIFEST)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ReleaseError, match=message):
        read_manifest(path)


def test_keys_of_a_later_version_are_skipped(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, MANIFEST)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"later": 1}))
    assert read_manifest(path) == MANIFEST
