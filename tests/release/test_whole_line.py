"""From a recipe to the hub and back: released, verified, published, verified there, by the commands alone."""

import json
import shutil
from pathlib import Path

import pytest
from moe_gguf.release.checksums import read_checksums, sha256_of, write_checksums

from ..command import moe_gguf
from .faults import flip, whole
from .hub_server import Hub, serving
from .small import contents, released, request_of, write_recipe
from .test_verify import verified

REPO = "us/Tiny-GGUF"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def release(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(request_of(recipe, tmp_path_factory.mktemp("line") / "out")).folder


def models(folder: Path) -> list[str]:
    """Return the names of a release's quantizations."""
    return [file["name"] for file in json.loads((folder / "manifest.json").read_text())["files"]]


def test_a_release_is_bit_exact_with_its_recipe_its_gates_and_its_matrix(release: Path, recipe: Path) -> None:
    files = verified(release, "--against", recipe, status=0)
    by_name = {file["path"]: file for file in files}
    assert set(by_name) == set(read_checksums(release)) and len(models(release)) == 2
    for name in models(release):
        counts = by_name[name]["tensors"]
        assert counts["exact"] > 20 and not counts["same_type"] + counts["wrong"] + counts["unchecked"]


def test_whoever_changes_a_file_and_its_checksum_is_found(release: Path, recipe: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(release, tmp_path / "copy"))
    name = next(name for name in models(folder) if "Q4_K_M" in name)
    found, _ = whole(folder / name, "blk.0.ffn_up_exps.weight")
    flip(folder / name, found.offset + 100, 5)
    write_checksums(folder, {**read_checksums(folder), name: sha256_of(folder / name)})
    by_name = {file["path"]: file["problems"] for file in verified(folder, "--against", recipe, "--no-load")}
    assert [one["kind"] for one in by_name[name]] == ["manifest", "wrong"]
    assert by_name[name][1]["tensor"] == "blk.0.ffn_up_exps.weight" and by_name[name][1]["expert"] == 0
    assert not any(problems for path, problems in by_name.items() if path != name)
    refused = moe_gguf("publish", folder, REPO)
    assert refused.status == 1 and "manifest.json" in refused.stderr


def test_another_mix_than_the_manifests_is_found(release: Path, recipe: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(release, tmp_path / "copy"))
    name = next(name for name in models(folder) if "Q4_K_M" in name)
    made = moe_gguf(
        *("quantize", recipe, "--gates", folder / "gates.safetensors", "--imatrix", folder / "imatrix.gguf"),
        *("--type", "Q4_K_M", "--tensor-type", "attn_q=q5_K", "-o", folder / name, "--force", "-q"),
    )
    assert made.status == 0, made.stderr
    (problems,) = (file["problems"] for file in verified(folder, "--no-load") if file["path"] == name)
    assert [one["kind"] for one in problems] == ["checksum", "mix"] and "than in the manifest" in problems[1]["message"]


def test_what_was_published_is_verified_where_it_lies(
    release: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Hub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        done = moe_gguf("publish", release, REPO)
        assert done.status == 0, done.stderr
        assert hub.files(REPO) == contents(release)
        files = verified(REPO, "--against", recipe, "--gates", release / "gates.safetensors", status=0)
        by_name = {file["path"]: file["tensors"] for file in files}
        assert all(by_name[name]["exact"] > 20 and not by_name[name]["wrong"] for name in models(release))
