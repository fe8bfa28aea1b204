"""A whole release of a tiny mixture: the same bytes each time, only what is missing is made, and everything is true."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from moe_gguf.formats.errors import OutputError, PlanError, ReleaseError
from moe_gguf.jobs import compare, convert, imatrix, quantize, routes
from moe_gguf.jobs.opening import GateRequest
from moe_gguf.release.checksums import check_checksums, read_checksums
from moe_gguf.release.ledger import Ledger
from moe_gguf.release.manifest import read_manifest
from moe_gguf.release.release import Report, prepare
from moe_gguf.release.request import Request, Text

from .small import TEXTS, contents, released, request_of, write_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def first(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return released(request_of(recipe, tmp_path_factory.mktemp("first") / "out"))


@pytest.fixture
def request_(recipe: Path, tmp_path: Path) -> Request:
    return request_of(recipe, tmp_path / "other" / "place")


def test_two_folders_have_the_same_files_manifests_and_cards(first: Report, request_: Request) -> None:
    again = released(request_)
    assert contents(again.folder) == contents(first.folder)
    assert {"README.md", "manifest.json", "SHA256SUMS", "recipe.yml", "gates.safetensors", "imatrix.gguf"} <= {
        *contents(first.folder)
    }
    assert str(first.folder.parent) not in (first.folder / "manifest.json").read_text()


def test_checksums_manifest_and_statement_are_those_of_the_folder(first: Report) -> None:
    folder = first.folder
    sums = read_checksums(folder)
    assert set(sums) == set(contents(folder)) - {"SHA256SUMS"}
    assert not check_checksums(folder, sums)
    manifest = read_manifest(folder)
    assert manifest == first.manifest
    assert all(sums[file.name] == file.sha256 for file in manifest.listed)
    assert set(sums) == {file.name for file in manifest.listed} | {"README.md", "manifest.json", "release.intoto.json"}
    statement = json.loads((folder / "release.intoto.json").read_text())
    assert {one["name"]: one["digest"]["sha256"] for one in statement["subject"]} == {
        name: digest for name, digest in sums.items() if name not in ("README.md", "release.intoto.json")
    }


def test_the_manifest_says_what_was_read_and_what_was_found(first: Report, recipe: Path) -> None:
    manifest = first.manifest
    read = {(model.name, file.name): file.sha256 for model in manifest.source.models for file in model.files}
    for name in ("base", "one", "two", "three"):
        data = (recipe.parent / name / "model.safetensors").read_bytes()
        assert read[name, "model.safetensors"] == hashlib.sha256(data).hexdigest()
    assert manifest.recipe and [expert.name for expert in manifest.recipe.experts] == ["one", "two", "three"]
    assert [file.type for file in manifest.files] == ["Q8_0", "Q4_K_M"]
    eight, four = manifest.files
    assert eight.quality and four.quality and eight.quality.kld < four.quality.kld
    assert set(eight.quality.kld_by_text) == {"scripture", "german"}
    assert [room.n_ctx for room in four.room] == [128, 256]
    assert manifest.routes and len(manifest.routes.texts) == 2
    assert manifest.calibration and [text.name for text in manifest.calibration.texts] == ["manual"]
    assert manifest.reference and manifest.reference.type == "BF16" and manifest.reference.noise_floor is not None


def refuse(*_: object, **__: object) -> Any:
    raise AssertionError("a job was run again")


def test_run_again_it_makes_nothing(first: Report, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for job in (compare, convert, imatrix, quantize, routes):
        monkeypatch.setattr(job, "run", refuse)
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    again = released(request_of(recipe, first.folder))
    assert again.changed == () and again.manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before


class Killed(BaseException):
    """Ends a run at once, where nothing expects it."""


@pytest.mark.parametrize("point", [13, 20])
def test_killed_at_any_note_it_goes_on(
    point: int, first: Report, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, save = 0, Ledger._save

    def killing(ledger: Ledger) -> None:
        nonlocal notes
        notes += 1
        if notes == point:
            raise Killed
        save(ledger)
        if notes == point - 1 and point % 2:
            raise Killed

    monkeypatch.setattr(Ledger, "_save", killing)
    with pytest.raises(Killed):
        released(request_)
    monkeypatch.setattr(Ledger, "_save", save)
    assert contents(released(request_).folder) == contents(first.folder)


def test_a_type_that_is_added_is_the_only_one_made(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    request_ = replace(request_, texts=(), rounding="plain", calibration=())
    one = released(request_, types=("Q8_0",))
    made: list[str] = []
    write = quantize.run

    def watched(prepared: quantize.Prepared, *arguments: Any) -> Any:
        made.extend(variant.mix.name for variant in prepared.variants)
        return write(prepared, *arguments)

    monkeypatch.setattr(quantize, "run", watched)
    both = released(request_)
    assert made == ["Q4_K_M"]
    assert both.manifest.files[0] == one.manifest.files[0]
    left = released(request_, types=("Q4_K_M",))
    assert made == ["Q4_K_M"] and [file.type for file in left.manifest.files] == ["Q4_K_M"]
    assert not list(left.folder.glob("*Q8_0*"))


def test_a_file_is_released_plainly_and_in_shards(first: Report, tmp_path: Path, recipe: Path) -> None:
    source = first.folder.with_name("out.work") / "Tiny-3x1.1M-BF16.gguf"
    request = request_of(source, tmp_path / "out")
    report = released(request, rounding="plain", calibration=(), split_max_size=500_000, types=("Q8_0",), texts=())
    file = report.manifest.files[0]
    assert len(file.files) > 1 and file.name.endswith(f"-00001-of-{len(file.files):05}.gguf")
    assert file.bytes == sum(part.bytes for part in file.files) and file.quality is None
    card = (report.folder / "README.md").read_text()
    assert card.count("| [Q8_0]") == 1 and "KL divergence" not in card
    assert not (report.folder / "recipe.yml").exists()


def test_weights_are_rounded_by_moments_where_that_is_asked(recipe: Path, tmp_path: Path) -> None:
    report = released(request_of(recipe, tmp_path / "out"), rounding="calibrated", types=("Q4_K_M",), texts=())
    known = report.manifest.calibration
    assert known and known.moments and known.imatrix and known.n_chunk == 1
    assert known.moments.name not in read_checksums(report.folder)
    assert "errors cancel in the output" in (report.folder / "README.md").read_text()
    given = tmp_path / "out.work" / "moments.safetensors"
    again = released(
        request_of(recipe, tmp_path / "again"), rounding="calibrated", types=("Q4_K_M",), texts=(), moments=given
    )
    assert again.manifest.files == report.manifest.files


def test_evaluations_of_a_file_are_told(first: Report, recipe: Path, tmp_path: Path) -> None:
    scores = {"hellaswag": {"alias": "hellaswag", "acc_norm,none": 0.25, "acc_norm_stderr,none": 0.5}}
    found = {"results": scores, "n-shot": {"hellaswag": 10}, "model_name": "Tiny-3x1.1M-Q8_0"}
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(found))
    report = released(request_of(recipe, first.folder), evaluations=(path,))
    (one,) = report.manifest.evaluations
    assert (one.model, one.task, one.n_shot, one.value, one.error) == ("Tiny-3x1.1M-Q8_0", "HellaSwag", 10, 0.25, 0.5)
    assert set(report.changed) == {"README.md", "manifest.json", "release.intoto.json", "SHA256SUMS"}
    for text in (json.dumps(found | {"model_name": "other"}), "[]", "{"):
        path.write_text(text)
        with pytest.raises(ReleaseError, match=r"eval\.json: (is of other|not what eval)"):
            released(request_of(recipe, first.folder), evaluations=(path,))
    released(request_of(recipe, first.folder))


def test_other_publishers_files_are_measured_too(first: Report, recipe: Path, tmp_path: Path) -> None:
    eight, four = first.manifest.files
    theirs = tmp_path / "theirs" / eight.name
    theirs.parent.mkdir()
    theirs.write_bytes((first.folder / four.name).read_bytes())
    report = released(request_of(recipe, tmp_path / "out"), against=(theirs,))
    (other,) = report.manifest.against
    assert other.quality == report.manifest.files[1].quality and report.manifest.files[0].quality == eight.quality
    assert f"| theirs/{eight.name} (another publisher's) |" in (report.folder / "README.md").read_text()
    assert "theirs" not in "".join(read_checksums(report.folder))


def test_what_cannot_be_is_refused_at_once(request_: Request, tmp_path: Path) -> None:
    same = Text("same", TEXTS / "scripture.txt")
    for changes, message in (
        ({"types": ()}, "no types"),
        ({"types": ("Q8_0", "q8_0")}, "twice"),
        ({"calibration": (same,)}, "held out"),
        ({"texts": (*request_.texts, Text("german", TEXTS / "manual.txt"))}, "one name"),
        ({"texts": (), "against": (tmp_path,)}, "held-out text"),
    ):
        with pytest.raises(PlanError, match=message):
            released(request_, **changes)
    assert not prepare(request_).folder.exists()


def test_a_file_of_somebody_else_is_not_overwritten(request_: Request) -> None:
    assert request_.output
    request_.output.mkdir(parents=True)
    card = request_.output / "README.md"
    card.write_text("mine")
    plainly = {"texts": (), "rounding": "plain", "calibration": (), "types": ("Q8_0",)}
    with pytest.raises(OutputError, match="no run of this release made it"):
        released(request_, **plainly)
    assert card.read_text() == "mine"
    assert "README.md" in released(request_, **plainly, force=True).changed


def test_the_folder_alone_makes_the_same_files(recipe: Path, tmp_path: Path) -> None:
    house = tmp_path / "house"
    (house / "models").mkdir(parents=True)
    for path in recipe.parent.iterdir():
        (house / "models" / path.name).symlink_to(path)
    words = 'title = "Small"\nlicense = "apache-2.0"\nlanguage = ["en"]\nprompts_by = "us"\n'
    (house / "models.toml").write_text(f'[models.small]\n{words}path = "models/tiny.yml"\n')
    request = replace(request_of(Path("small"), tmp_path / "out"), model="small", catalogue=house / "models.toml")
    report = released(request, types=("Q4_K_M",), texts=())
    card = (report.folder / "README.md").read_text()
    assert "license: apache-2.0" in card and "The prompts were written by us" in card
    assert "moe-gguf release small --gates gates.safetensors --types Q4_K_M --imatrix imatrix.gguf" in card
    for name in ("base", "one", "two", "three"):
        (report.folder / name).symlink_to(recipe.parent / name)
    again = Request(
        "small",
        types=("Q4_K_M",),
        catalogue=report.folder / "models.toml",
        output=tmp_path / "again",
        rounding="imatrix",
        imatrix=report.folder / "imatrix.gguf",
        gates=GateRequest(report.folder / "gates.safetensors"),
    )
    made = released(again).manifest.files[0]
    assert made.name == "Small-3x1.1M-Q4_K_M.gguf" and made.sha256 == report.manifest.files[0].sha256
