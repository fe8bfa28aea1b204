"""What a model argument means: paths before names, the default, and clear words for everything else."""

import os
from pathlib import Path

import pytest
from moe_gguf.formats.errors import CatalogueError, CheckpointError, GgufError
from moe_gguf.jobs import sources
from moe_gguf.jobs.gguf_choice import best_gguf
from moe_gguf.jobs.sources import ModelSource, SourceKind, find_catalogue

from ..checkpoints import Tiny, write_checkpoint

CATALOGUE = """
default = "local"
[models.local]
path = "weights"
output = "out"
[models.file]
path = "file.gguf"
[models.gone]
path = "gone"
[models.yaml]
path = "recipe.yml"
[models.hub]
hub = "owner/name"
[models.merge]
base_model = "a"
experts = [{ source_model = "a" }]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with a catalogue."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOE_GGUF_CATALOGUE", raising=False)
    (tmp_path / "models.toml").write_text(CATALOGUE)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    (tmp_path / "recipe.yml").write_text("base_model: a\n")
    return tmp_path


def resolve_source(argument: str | None, prefer_gguf: bool = False) -> ModelSource:
    """Resolve with the catalogue that is found here."""
    return sources.resolve_source(argument, find_catalogue(), prefer_gguf)


def resolve_gguf(argument: str | None) -> Path:
    """Resolve with the catalogue that is found here."""
    return sources.resolve_gguf(argument, find_catalogue())


def empty_ggufs(folder: Path, *names: str) -> None:
    """Make files of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"GGUF")


def test_names(folder: Path) -> None:
    local = resolve_source(None)
    assert (local.kind, local.path, local.output) == (SourceKind.CHECKPOINT, Path("weights"), Path("out"))
    assert local.entry
    assert resolve_source("local") == local
    assert resolve_source("file").kind is SourceKind.GGUF
    yaml = resolve_source("yaml")
    assert (yaml.kind, yaml.path, yaml.folder) == (SourceKind.RECIPE, Path("recipe.yml"), Path("."))
    hub = resolve_source("hub")
    assert (hub.kind, hub.hub, hub.path) == (SourceKind.HUB, "owner/name", None)
    merge = resolve_source("merge")
    assert (merge.kind, merge.path, merge.where) == (SourceKind.RECIPE, None, "models.toml:14")
    assert merge.recipe == {"base_model": "a", "experts": [{"source_model": "a"}]}
    assert merge.output == Path("gguf/merge")


def test_a_path_wins_over_a_name(folder: Path) -> None:
    (folder / "hub").mkdir()
    (folder / "hub" / "config.json").write_text("{}")
    found = resolve_source("hub")
    assert (found.kind, found.path, found.entry, found.output) == (SourceKind.CHECKPOINT, Path("hub"), None, None)


def test_what_is_neither(folder: Path) -> None:
    with pytest.raises(CatalogueError, match=r"marge: no such file .* known: merge, "):
        resolve_source("marge")
    with pytest.raises(CatalogueError, match=r"models.toml:8: gone: gone does not exist"):
        resolve_source("gone")
    (folder / "notes.txt").write_text("hello")
    with pytest.raises(GgufError, match=r"notes.txt: not a model; give a checkpoint folder"):
        resolve_source("notes.txt")
    (folder / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no config"):
        resolve_source("empty")
    (folder / "models.toml").unlink()
    with pytest.raises(CatalogueError, match=r"no model given and no models.toml here"):
        resolve_source(None)
    with pytest.raises(CatalogueError, match=r"merge: no such file or folder, and no models.toml here"):
        resolve_source("merge")


def test_quantize_finds_what_convert_wrote(folder: Path) -> None:
    assert resolve_source(None, prefer_gguf=True).kind is SourceKind.CHECKPOINT
    empty_ggufs(folder / "out", "local-Q8_0.gguf")
    assert resolve_source(None, prefer_gguf=True).kind is SourceKind.CHECKPOINT, "Q8_0 has lost something"
    empty_ggufs(folder / "out", "local-F16.gguf", "local-BF16.gguf")
    found = resolve_source(None, prefer_gguf=True)
    assert found.path is not None and found.path == Path("out/local-BF16.gguf")
    assert (found.kind, found.output) == (SourceKind.GGUF, Path("out"))
    assert resolve_source(None).kind is SourceKind.CHECKPOINT
    for changed in (folder / "models.toml", folder / "weights" / "config.json"):
        later = found.path.stat().st_mtime + 10
        os.utime(changed, (later, later))
        assert resolve_source(None, prefer_gguf=True).kind is SourceKind.CHECKPOINT
        os.utime(changed, (1, 1))
    assert resolve_source(None, prefer_gguf=True).kind is SourceKind.GGUF


def test_the_best_file_to_run(folder: Path) -> None:
    with pytest.raises(CatalogueError, match="local: no GGUF file in out yet; make one with: moe-gguf quantize --type"):
        resolve_gguf(None)
    with pytest.raises(CatalogueError, match="moe-gguf quantize merge --type Q4_K_M"):
        resolve_gguf("merge")
    with pytest.raises(
        GgufError, match=r"weights: no GGUF file in this folder, and no weights \(\*.safetensors\) beside"
    ):
        resolve_gguf("weights")
    (folder / "weights" / "model.safetensors").touch()
    with pytest.raises(GgufError, match="weights: no GGUF file in this folder; make one with: moe-gguf quantize"):
        resolve_gguf("weights")
    with pytest.raises(GgufError, match=r"recipe.yml: not a GGUF file; make one with"):
        resolve_gguf("recipe.yml")
    (folder / "empty").mkdir()
    with pytest.raises(
        GgufError, match=r"empty: no GGUF file in this folder, and no config\.json in this folder; give"
    ):
        resolve_gguf("empty")
    (folder / "empty" / "adapter_config.json").touch()
    with pytest.raises(GgufError, match="only a LoRA adapter's; name it in a recipe"):
        resolve_gguf("empty")
    with pytest.raises(CheckpointError, match="only a LoRA adapter's"):
        resolve_source("empty")
    for name in ("x-IQ1_S.gguf", "x-BF16.gguf", "x-Q8_0.gguf", "x.q5_k_m.gguf", "x-Q4_K_M.gguf"):
        empty_ggufs(folder / "out", name)
        if name != "x-IQ1_S.gguf":
            assert resolve_gguf("local") == Path("out", name)
    assert resolve_gguf("out") == Path("out/x-Q4_K_M.gguf")
    assert resolve_gguf("file") == Path("file.gguf")
    assert resolve_gguf("file.gguf") == Path("file.gguf")


def test_the_newest_and_the_first_shard(tmp_path: Path) -> None:
    shards = [f"x-Q4_K_M-0000{i}-of-00002.gguf" for i in (1, 2)]
    empty_ggufs(tmp_path, *shards)
    assert best_gguf(tmp_path, ("Q4_K_M",)) == tmp_path / shards[0]
    empty_ggufs(tmp_path, "new-Q4_K_M.gguf")
    os.utime(tmp_path / shards[0], (1, 1))
    assert best_gguf(tmp_path, ("Q4_K_M",)) == tmp_path / "new-Q4_K_M.gguf"
    assert best_gguf(tmp_path, ("Q8_0",)) is None
    assert best_gguf(tmp_path / "none", ("Q8_0",)) is None


def test_where_the_catalogue_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_catalogue() == Path("models.toml")
    other = folder / "elsewhere" / "mine.toml"
    other.parent.mkdir()
    other.write_text('[models.mine]\npath = "w"\n')
    write_checkpoint(other.parent / "w", Tiny())
    monkeypatch.setenv("MOE_GGUF_CATALOGUE", str(other))
    assert resolve_source("mine").path == other.parent / "w"
    assert resolve_source("mine").output == other.parent / "gguf" / "mine"
    monkeypatch.setenv("MOE_GGUF_CATALOGUE", "none.toml")
    with pytest.raises(CatalogueError, match="no such catalogue"):
        resolve_source("mine")
    assert resolve_gguf("file.gguf") == Path("file.gguf"), "a path needs no catalogue"
