"""quantize with texts: moments and sensitivities are made on the way, gone on with, used, and cleaned away."""

import json
from pathlib import Path

import numpy as np
import pytest
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.formats.moments import Entry, Moment, MomentsFile, MomentsWriter
from moe_gguf.jobs import groundwork, quantize
from moe_gguf.jobs.budgeting import Budget
from moe_gguf.jobs.cache import list_cache
from moe_gguf.jobs.groundwork import Wanted, laid
from moe_gguf.jobs.listener import Silent
from moe_gguf.jobs.loading import LoadRequest
from moe_gguf.quantize.file_types import parse_file_type
from moe_gguf.quantize.stock_policy import stock

from ..command import moe_gguf
from ..merge.cases import CASES, write_case
from ..merge.tiny_models import Dense, write_dense

TEXTS = Path(__file__).parents[1] / "cli" / "texts"
ONE_THREAD = LoadRequest(n_threads=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOE_GGUF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    found = []
    for name in ("manual", "german"):
        found.append(tmp_path / f"{name}.txt")
        found[-1].write_text((TEXTS / f"{name}.txt").read_text(encoding="utf-8")[:1700], encoding="utf-8")
    return found


class Told(Silent):
    """Remembers what is said."""

    def __init__(self, stop_at: str = "nothing") -> None:
        self.stop_at, self.said = stop_at, list[str]()

    def say(self, message: str) -> None:
        self.said.append(message)
        if self.stop_at in message:
            raise KeyboardInterrupt


def asked(model: Path, out: Path, sensitivity: Path | None = None, **budget: float) -> quantize.Request:
    wish = Budget(sensitivity, **budget) if budget else None  # pyright: ignore[reportArgumentType]
    mixes = () if budget else (stock(parse_file_type("Q4_0")),)
    return quantize.Request(model, mixes, outfile=str(out), budget=wish, n_threads=1)


def test_a_calibration_text_does_what_moments_of_it_do(tiny_path: Path, texts: list[Path], tmp_path: Path) -> None:
    one, two, moments = tmp_path / "one.gguf", tmp_path / "two.gguf", tmp_path / "m"
    rest = ("--type", "Q4_0", "-q", "--json", "-t", "1")
    done = moe_gguf("quantize", tiny_path, "--calibration", texts[0], "-f", texts[1], "-o", one, *rest, "--chunks", "1")
    assert done.status == 0, done.stderr
    report = json.loads(done.stdout)["outputs"][0]
    assert report["rounding"]["kind"] == "calibrated" and report["rounding"]["tensors"] > 0
    assert [row["text"] for row in report["texts"]] == list(map(str, texts))
    for row in report["texts"]:
        assert row["kld"] > 0 and row["plain_kld"] > 0 and row["kld_error"] > 0
        worse = row["kld"] - row["plain_kld"] > 2 * (row["kld_error"] ** 2 + row["plain_kld_error"] ** 2) ** 0.5
        assert worse == (f"on {row['text']} calibrated rounding is worse" in done.stderr)
    assert not list_cache().entries and not list(list_cache().folder.iterdir())
    made = ("imatrix", tiny_path, "-f", texts[0], "-o", tmp_path / "i", "--moments", moments, "-q", "-t", "1")
    assert moe_gguf(*made).status == 0
    assert moe_gguf("quantize", tiny_path, "--moments", moments, "-o", two, *rest).status == 0
    assert one.read_bytes() == two.read_bytes()


def test_a_size_and_a_text_are_enough(tiny_path: Path, texts: list[Path], tmp_path: Path) -> None:
    known = tmp_path / "s.json"
    rest = ("--sensitivity", known, "--chunks", "1", "-q", "--json", "-t", "1")
    done = moe_gguf("quantize", tiny_path, "--target-bpw", "8", "-f", texts[0], "-o", tmp_path / "a.gguf", *rest)
    assert done.status == 0, done.stderr
    report = json.loads(done.stdout)["outputs"][0]
    assert report["rounding"]["kind"] == "plain" and report["budget"]["mix"] and "texts" not in report
    assert (tmp_path / "a.gguf").stat().st_size <= report["budget"]["bytes"]
    found = json.loads(known.read_text())
    assert found["rounding"] == "plain" and found["errors"]
    again = moe_gguf("quantize", tiny_path, "--target-bpw", "8", "-o", tmp_path / "b.gguf", *rest)
    assert json.loads(again.stdout)["outputs"][0]["budget"] == report["budget"]
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    along = moe_gguf("quantize", tiny_path, "--frontier", "--plot", tmp_path / "f.svg", *rest)
    assert along.status == 0, along.stderr
    places = json.loads(along.stdout)["frontier"]
    klds = [place["predicted_kld"] for place in places]
    assert klds == sorted(klds, reverse=True) and any(place["stock_size"] for place in places)
    assert b"<svg" in (tmp_path / "f.svg").read_bytes()
    assert "predicted" in moe_gguf("quantize", tiny_path, "--frontier", "--sensitivity", known, "-q").stdout


def test_after_ctrl_c_what_was_measured_is_there(tiny_path: Path, texts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    wanted = Wanted(texts[0], (texts[1],), 1, ONE_THREAD)
    request = asked(tiny_path, out, bits_per_weight=8.0)
    with pytest.raises(KeyboardInterrupt), laid(request, wanted, Told(stop_at="sensitivities are measured on")):
        pass
    (left,) = list_cache().entries
    assert left.name.startswith("moe-gguf-quantize-") and left.n_bytes and not left.in_use
    again = Told()
    with laid(request, wanted, again) as ready:
        assert ready.request.moments and ready.request.budget and ready.request.budget.sensitivity
        assert list_cache().entries[0].in_use
        report = quantize.run(quantize.prepare(ready.request))
    assert any("are there, from an interrupted run" in said for said in again.said)
    assert report.outputs[0].rounding and report.outputs[0].rounding.kind == "calibrated" and out.exists()
    assert not list_cache().entries


def test_a_model_beyond_the_memory_is_run_as_a_smaller_file(
    tiny_path: Path, texts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groundwork, "SHARE_OF_MEMORY", 0.0)
    told = Told()
    with laid(asked(tiny_path, tmp_path / "a.gguf"), Wanted(texts[0], load=ONE_THREAD), told) as ready:
        assert ready.request.moments and ready.request.moments.exists()
        assert not list(ready.folder.glob("run-*"))
    assert any("too much for this machine's memory: run as Q2_K" in said for said in told.said)


def test_what_cannot_be_is_told_before_anything_is_measured(tiny_path: Path, texts: list[Path], tmp_path: Path) -> None:
    there = tmp_path / "there.gguf"
    there.write_bytes(tiny_path.read_bytes())
    text = ("--calibration", texts[0])
    cases: list[tuple[int, str, tuple[str | Path, ...]]] = [
        (1, "exists already", ("--type", "Q4_0", *text, "-o", there)),
        (1, "exclude each other", ("--type", "Q4_0", *text, "--moments", there)),
        (1, "no variant of its source", ("--type", "Q4_0", "-f", texts[0], "--prune-layers", "0")),
        (2, "exclude each other", ("--target-bpw", "5", "--target-fit", "8G")),
        (2, "goes with -f TEXT", ("--target-fit", "8G+16G")),
        (2, "no such file; with -f TEXT", ("--frontier", "--sensitivity", tmp_path / "none")),
        (2, "--sensitivity goes with", ("--type", "Q4_0", "--sensitivity", there)),
        (2, "write VRAM+RAM", ("--target-fit", "1G+2G+3G", *text)),
        (2, "is not an amount of memory", ("--target-fit", "much", *text)),
        (2, "--plot goes with", ("--type", "Q4_0", "--plot", "a.png")),
        (2, "goes without --type", ("--type", "Q4_0", "--frontier", *text)),
    ]
    for status, message, options in cases:
        done = moe_gguf("quantize", tiny_path, *options, "-q")
        assert done.status == status and message in done.stderr, (options, done.stderr)
    dry = moe_gguf("quantize", tiny_path, "--type", "Q4_0", *text, "-o", tmp_path / "a.gguf", "-q", "--dry-run")
    assert dry.status == 0 and "a.gguf" in dry.stdout
    assert not (tmp_path / "cache").exists() or not list_cache().entries


def test_another_rounding_than_was_measured_is_told(tiny_path: Path, texts: list[Path], tmp_path: Path) -> None:
    known = tmp_path / "s.json"
    rest = ("--target-bpw", "8", "--sensitivity", known, "--chunks", "1", "-t", "1", "-q")
    assert moe_gguf("quantize", tiny_path, "-f", texts[0], "-o", tmp_path / "a.gguf", *rest).status == 0
    done = moe_gguf("quantize", tiny_path, "--calibration", texts[0], "-o", tmp_path / "b.gguf", *rest)
    assert done.status == 0 and "measured with plain rounding, and this file's is calibrated" in done.stderr
    assert read_gguf(tmp_path / "b.gguf").metadata["quantize.rounding"] == "calibrated"


def test_a_checkpoint_is_written_to_be_run_and_moments_of_it_fit(texts: list[Path], tmp_path: Path) -> None:
    folder = write_dense(tmp_path / "dense", Dense())
    told, request = Told(), asked(folder, tmp_path / "a.gguf")
    with laid(request, Wanted(texts[0], load=ONE_THREAD), told) as ready:
        assert ready.source and ready.source.parent == ready.folder
        report = quantize.run(quantize.prepare(ready.request))
    assert any("to be run and compared with" in said for said in told.said)
    rounding = report.outputs[0].rounding
    assert rounding and rounding.n_tensors >= 2 * 7 and not list_cache().entries


def misleading(file: MomentsFile, entry: Entry, expert: int) -> Moment:
    """Return moments by which errors go where the inputs are largest, and no inputs that would show it."""
    found = file.read(entry, expert)
    blocks = []
    for h in found.blocks:
        damped = h / h.diagonal().mean() + 0.01 * np.eye(len(h))
        blocks.append(np.linalg.inv(damped).astype(np.float32))
    return Moment(tuple(blocks), 10**6, 1.0, np.zeros((0, entry.row_length), np.float32))


def test_rounding_that_does_worse_than_plain_rounding_is_warned_of(
    tiny_path: Path, texts: list[Path], tmp_path: Path
) -> None:
    made = ("imatrix", tiny_path, "-f", texts[0], "-o", tmp_path / "i", "--moments", tmp_path / "m", "-q", "-t", "1")
    assert moe_gguf(*made).status == 0
    file = MomentsFile(tmp_path / "m")
    with MomentsWriter(tmp_path / "wrong", file.info) as writer:
        for entry in writer.missing:
            writer.put(entry, [misleading(file, entry, expert) for expert in range(entry.n_expert)])
        writer.finish()
    rest = ("--type", "Q5_0", "-f", texts[1], "-o", tmp_path / "a.gguf", "--force", "-t", "1", "-q", "--json")
    for moments, is_worse in (("m", False), ("wrong", True)):
        done = moe_gguf("quantize", tiny_path, "--moments", tmp_path / moments, *rest)
        (row,) = json.loads(done.stdout)["outputs"][0]["texts"]
        assert (row["kld"] > row["plain_kld"]) == is_worse, row
        assert (f"on {texts[1]} calibrated rounding is worse than plain" in done.stderr) == is_worse


@pytest.mark.parametrize("case", ["mixtral-mistral", "qwen3"])
def test_a_recipe_needs_no_merged_file(case: str, texts: list[Path], tmp_path: Path) -> None:
    recipe = write_case(tmp_path, CASES[case])
    one, two, full, moments = (tmp_path / name for name in ("one.gguf", "two.gguf", "full.gguf", "m"))
    told = Told()
    with laid(asked(recipe, one), Wanted(texts[0], load=ONE_THREAD), told) as ready:
        quantize.run(quantize.prepare(ready.request), told)
    assert sum("gates saved to" in said for said in told.said) == 1
    metadata = read_gguf(one).metadata
    assert metadata["quantize.rounding"] == "calibrated"
    assert moe_gguf("convert", recipe, "-o", full, "-q", "--no-verify").status == 0
    made = ("imatrix", full, "-f", texts[0], "-o", tmp_path / "i", "--moments", moments, "-q", "-t", "1")
    assert moe_gguf(*made).status == 0
    done = moe_gguf("quantize", recipe, "--type", "Q4_0", "--moments", moments, "-o", two, "-q", "-t", "1")
    assert done.status == 0, done.stderr
    assert one.read_bytes() == two.read_bytes()


def test_a_recipe_goes_on_with_the_routers_that_it_had(texts: list[Path], tmp_path: Path) -> None:
    recipe = write_case(tmp_path, CASES["mixtral-mistral"])
    request, wanted = asked(recipe, tmp_path / "a.gguf", bits_per_weight=8.0), Wanted(texts[0], n_chunk=1)
    with pytest.raises(KeyboardInterrupt), laid(request, wanted, Told(stop_at="sensitivities are measured on")):
        pass
    again = Told()
    with laid(request, wanted, again) as ready:
        quantize.run(quantize.prepare(ready.request), again)
    assert not any("gates saved to" in said or "for now" in said for said in again.said)
    fields = json.loads(recipe.read_text())
    fields["experts"][0]["positive_prompts"] = ["something else"]
    recipe.write_text(json.dumps(fields))
    request = asked(recipe, tmp_path / "b.gguf")
    with laid(request, wanted) as ready:
        quantize.run(quantize.prepare(ready.request))
    assert not list((tmp_path / "cache").glob("moe-gguf-quantize-*"))
