"""Perplexity and divergence against llama-perplexity's printed digits, and what is refused or gone on with."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from moe_gguf.cli.compare_text import lines, statistics
from moe_gguf.formats.errors import EngineError, Interrupted, OutputError
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.jobs import compare, perplexity
from moe_gguf.jobs.listener import Silent
from moe_gguf.jobs.loading import LoadRequest
from moe_gguf.measure.logits_file import StoredLogits

from ..command import moe_gguf
from ..measure.perplexity_cases import DIVERGENCES, PERPLEXITIES, TEXT, modest_tensors, write_models
from ..runner.tiny_gguf import Fields, Tensors, write_tiny

GOLDEN = json.loads((Path(__file__).parents[1] / "measure" / "golden" / "llama_perplexity.json").read_text())
ONE_THREAD = LoadRequest(n_threads=1, devices=())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


@pytest.fixture(scope="module")
def request_(models: Path) -> compare.Request:
    """Four windows of the tiny model and its Q8_0."""
    return compare.Request(
        models / "tiny.gguf",
        (models / "tiny-q8_0.gguf",),
        (("scripture", TEXT),),
        n_ctx=64,
        n_chunk=4,
        speed=False,
        load=ONE_THREAD,
    )


def measured(request: compare.Request) -> compare.Report:
    return compare.run(compare.prepare(request))


@pytest.mark.parametrize("name", PERPLEXITIES)
def test_perplexities_are_those_of_llama_perplexity_to_the_last_digit(name: str, models: Path) -> None:
    case = PERPLEXITIES[name]
    load = replace(ONE_THREAD, n_batch=case.n_batch, n_ubatch=case.n_batch and min(case.n_batch, 512))
    request = perplexity.Request(models / case.model, TEXT, None, case.n_ctx, case.n_chunk, case.stride, load)
    found = perplexity.run(perplexity.prepare(request)).perplexity
    printed = f"{found.ppl:.4f}" if case.stride else f"PPL = {found.ppl:.4f} +/- {found.error:.5f}"
    assert printed == GOLDEN["perplexity"][name]


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_are_those_of_llama_perplexity_to_the_last_digit(name: str, models: Path) -> None:
    base, variant, n_ctx = DIVERGENCES[name]
    report = measured(
        compare.Request(
            models / base, (models / variant,), (("text", TEXT),), n_ctx=n_ctx, speed=False, load=ONE_THREAD
        )
    )
    same = base == variant
    # The errors of a file's ratio to itself are roots of what is left of equal sums, which llama-perplexity's threads
    # add up in another order each time.
    kept = {label for label in GOLDEN["divergence"][name] if not (same and "PPL(Q)" in label)}
    found = {label: text for label, text in statistics(report.variants[0].divergence) if label in kept}
    assert found == {label: GOLDEN["divergence"][name][label] for label in kept}
    routing = report.variants[0].routing
    assert routing is not None and len(routing.layers) == 2
    assert (routing.value == 1) == same
    if same:
        assert report.variants[0].divergence.kld.value == pytest.approx(report.base.noise_floor, abs=1e-9)


def test_the_compact_form_is_half_as_large_and_nearly_as_true(request_: compare.Request, tmp_path: Path) -> None:
    plain = measured(replace(request_, save_logits=tmp_path / "stock"))
    small = measured(replace(request_, save_logits=tmp_path / "compact", compact=True))
    assert (tmp_path / "compact").stat().st_size <= 0.6 * (tmp_path / "stock").stat().st_size
    true, found = plain.variants[0].divergence.kld, small.variants[0].divergence.kld
    assert found.value == pytest.approx(true.value, rel=0.02, abs=2e-5)
    assert small.base.noise_floor is not None and abs(small.base.noise_floor) < 1e-4


@pytest.mark.parametrize("compact", [False, True])
def test_saved_logits_serve_instead_of_reading_the_base(
    request_: compare.Request, tmp_path: Path, compact: bool
) -> None:
    first = measured(replace(request_, save_logits=tmp_path / "logits", compact=compact))
    second = measured(replace(request_, base_logits=tmp_path / "logits"))
    assert statistics(second.variants[0].divergence) == statistics(first.variants[0].divergence)
    assert second.variants[0].routing and first.variants[0].routing
    assert second.variants[0].routing.layers == first.variants[0].routing.layers


class PressesKey(Silent):
    """Presses Ctrl-C after so many windows."""

    def __init__(self, after: int) -> None:
        self.left = after

    def bar(self, total: int, description: str, unit: str = "B", delay: float = 0) -> "PressesKey":  # type: ignore[override]
        return self

    def __enter__(self) -> "PressesKey":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, n: float = 1, /) -> None:
        self.left -= int(n)
        if self.left == 0:
            raise KeyboardInterrupt


def test_saving_that_was_interrupted_goes_on(request_: compare.Request, tmp_path: Path) -> None:
    whole = measured(replace(request_, save_logits=tmp_path / "whole"))
    request = replace(request_, save_logits=tmp_path / "parts")
    with pytest.raises(Interrupted, match="again to go on"):
        compare.run(compare.prepare(request), PressesKey(2))
    assert not (tmp_path / "parts").exists()
    report = measured(request)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert statistics(report.variants[0].divergence) == statistics(whole.variants[0].divergence)
    assert report.variants[0].routing and whole.variants[0].routing
    assert report.variants[0].routing.layers == whole.variants[0].routing.layers
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "parts",
        "parts.routing.npz",
        "whole",
        "whole.routing.npz",
    ]


def changed(path: Path, change: Callable[[Fields, Tensors], None]) -> Path:
    return write_tiny(path, change)


def fewer_experts(fields: Fields, tensors: Tensors) -> None:
    fields["llama.expert_count"] = 3
    for name, array in tensors.items():
        if "_exps" in name or "gate_inp" in name:
            tensors[name] = array[:3]


def other_vocabulary(fields: Fields, tensors: Tensors) -> None:
    fields["tokenizer.ggml.tokens"] = [*fields["tokenizer.ggml.tokens"][:-1], "qu"]


def broken_layer(fields: Fields, tensors: Tensors) -> None:
    tensors["blk.1.ffn_down_exps.weight"][:] = np.nan


def test_refusals_are_one_line_and_leave_nothing(request_: compare.Request, models: Path, tmp_path: Path) -> None:
    short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
    short.write_text("too short")
    binary.write_bytes(b"\xff\xfe\xfd\x00\x01")
    kept = tmp_path / "logits"
    measured(replace(request_, save_logits=kept))
    other = tmp_path / "other.txt"
    other.write_text(TEXT.read_text()[200:])
    cut = tmp_path / "cut"
    cut.write_bytes(kept.read_bytes()[:-9])
    before = sorted(tmp_path.iterdir())
    refused = {
        "tokens, and windows of": replace(request_, texts=(("short", short),), save_logits=tmp_path / "new"),
        "is not": replace(request_, texts=(("binary", binary),), save_logits=tmp_path / "new"),
        "another text": replace(request_, texts=(("other", other),), base_logits=kept),
        "windows of 64 tokens": replace(request_, base_logits=kept, n_ctx=128),
        "cut off": replace(request_, base_logits=cut),
        "no file of stored logits": replace(request_, base_logits=short),
        "another model": replace(request_, base=models / "tiny-q4_0.gguf", base_logits=kept),
        "exists already": replace(request_, save_logits=kept),
        "a .png or a .svg": replace(request_, plots=(tmp_path / "plot.pdf",)),
        "an input": replace(request_, save_logits=TEXT),
    }
    for words, request in refused.items():
        with pytest.raises((EngineError, OutputError), match=words) as caught:
            measured(request)
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "words"), [(fewer_experts, "experts 3, the base has 4"), (other_vocabulary, "another vocabulary")]
)
def test_what_is_no_variant_of_the_base_is_refused(
    change: Callable[[Fields, Tensors], None], words: str, request_: compare.Request, tmp_path: Path
) -> None:
    path = changed(tmp_path / "changed.gguf", change)
    with pytest.raises(EngineError, match=words):
        compare.prepare(replace(request_, variants=(path,)))


def test_nan_is_reported_with_where_it_begins(request_: compare.Request, tmp_path: Path) -> None:
    path = changed(tmp_path / "broken.gguf", broken_layer)
    with pytest.raises(EngineError, match="chunk 0, token 33 on; it begins in layer 1"):
        measured(replace(request_, variants=(path,)))
    with pytest.raises(EngineError, match="in layer 1"):
        perplexity.run(perplexity.prepare(perplexity.Request(path, TEXT, None, 64, 2, None, ONE_THREAD)))


def test_a_regated_variant_is_told_by_its_routing(request_: compare.Request, models: Path, tmp_path: Path) -> None:
    """Of two layers the second one's router is turned round; the file is the base otherwise."""
    tensors = modest_tensors()
    name = "blk.1.ffn_gate_inp.weight"
    path = write_tiny(
        tmp_path / "regated.gguf",
        lambda _, given: given.update({**tensors, name: np.ascontiguousarray(tensors[name][::-1])}),
    )
    report = measured(replace(request_, variants=(models / "tiny.gguf", path)))
    same, regated = (one.routing for one in report.variants)
    assert same and regated and same.layers == [1.0, 1.0]
    assert regated.layers[0] == 1.0 and regated.layers[1] < 0.9
    # The last layer is computed for the tokens that are scored only, half of a window.
    assert regated.value == pytest.approx((2 * 1.0 + regated.layers[1]) / 3)
    assert report.variants[1].divergence.kld.value > 100 * abs(report.base.noise_floor or 0)


LEVELS = ("p99.9", "p99", "p95", "p90", "median", "p10", "p5", "p1", "p0.1")
KLD_KEYS = {"mean", "mean_error", "max", "min", *LEVELS}
DELTA_KEYS = {*KLD_KEYS, "rms", "rms_error", "p75", "p25"}
PPL_KEYS = {
    *("q", "base", "ratio", "ratio_error", "ln_ratio", "ln_ratio_error"),
    *("difference", "difference_error", "correlation"),
}


def test_json_has_the_shape_that_is_promised(models: Path) -> None:
    windows = ("-f", f"scripture={TEXT}", "-c", "64", "--chunks", "2", "-t", "1")
    outcome = moe_gguf("compare", models / "tiny.gguf", models / "tiny-q8_0.gguf", *windows, "--json")
    assert outcome.status == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert set(report["base"]) == {"path", "ppl"} and set(report["noise_floor"]) == {"kld_mean"}
    (variant,) = report["variants"]
    assert variant["path"] == str(models / "tiny-q8_0.gguf")
    assert variant["bytes"] == (models / "tiny-q8_0.gguf").stat().st_size and variant["bpw"] > 0
    for found in (variant, variant["texts"]["scripture"]):
        assert set(found["ppl"]) >= PPL_KEYS
        assert set(found["kld"]) == KLD_KEYS and set(found["delta_p"]) == DELTA_KEYS
        assert set(found["same_top"]) == {"value", "error"}
        assert all(set(one) == {"from", "to", "n_tokens", "kld", "same_top"} for one in found["by_confidence"])
    assert set(variant["routing"]) == {"agreement", "layers"} and len(variant["routing"]["layers"]) == 2
    assert set(variant["speed"]) == {"prompt_per_second", "generated_per_second"}
    assert report["n_chunks"] == 2 and report["n_tokens"] == 2 * 31
    outcome = moe_gguf("perplexity", models / "tiny.gguf", *windows[:1], TEXT, *windows[2:], "--json")
    found = json.loads(outcome.stdout)
    assert list(found) == ["ppl", "ppl_error", "n_chunks", "n_tokens"]
    assert (found["n_chunks"], found["n_tokens"]) == (2, 2 * 31)
    assert found["ppl"] == pytest.approx(report["base"]["ppl"])


def test_perplexity_refuses_in_one_line(models: Path, tmp_path: Path) -> None:
    short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
    short.write_text("too short")
    binary.write_bytes(b"\xff\xfe\xfd\x00\x01")
    for path, words in ((short, "windows of 64 need at least 128"), (binary, "is not"), (tmp_path / "no", "no")):
        outcome = moe_gguf("perplexity", models / "tiny.gguf", "-f", path, "-c", "64", "-t", "1")
        assert outcome.status in (1, 2) and words in outcome.stderr and "Traceback" not in outcome.stderr
    outcome = moe_gguf("perplexity", models / "tiny.gguf", "-f", TEXT, "-c", "64", "--stride", "64", "-t", "1")
    assert outcome.status == 1 and "--stride 64: write a number from 1 to 63" in outcome.stderr


def test_texts_are_told_apart_and_answers_stand_side_by_side(
    request_: compare.Request, models: Path, tmp_path: Path
) -> None:
    german = TEXT.with_name("german.txt")
    variants = (models / "tiny.gguf", models / "tiny-q4_0.gguf")
    report = measured(
        replace(
            request_,
            variants=variants,
            texts=(("scripture", TEXT), ("german", german)),
            n_chunk=2,
            prompts=("the eternal life",),
            n_predict=12,
            plots=(tmp_path / "sizes.png", tmp_path / "sizes.svg"),
        )
    )
    same, damaged = report.variants
    assert list(damaged.texts) == ["scripture", "german"]
    assert sum(each.n_token for each in damaged.texts.values()) == damaged.divergence.n_token
    assert same.answers[0].at is None and damaged.answers[0].at is not None
    assert damaged.answers[0].gap is not None and damaged.answers[0].gap > 0
    text = "\n".join(lines(report))
    assert "tiny.gguf: the same" in text and "parts at token" in text and "KLD by text" in text
    assert (tmp_path / "sizes.png").read_bytes()[:4] == b"\x89PNG"
    assert "q4_0" in (tmp_path / "sizes.svg").read_text()
    shape = report.as_json()
    assert set(shape) >= {"base", "noise_floor", "variants"}
    assert set(shape["variants"][0]) >= {
        *("path", "bytes", "bpw", "ppl", "kld", "delta_p", "same_top", "routing", "texts"),
    }
    json.dumps(shape, allow_nan=False)


def test_llama_perplexitys_file_is_read(request_: compare.Request, models: Path, tmp_path: Path) -> None:
    """What we save has llama.cpp's layout: header, tokens, and rows whose size is even."""
    path = tmp_path / "logits"
    measured(replace(request_, save_logits=path))
    n_vocab = len(read_gguf(models / "tiny.gguf").metadata["tokenizer.ggml.tokens"])
    data = path.read_bytes()
    assert data[:8] == b"_logits_"
    assert np.frombuffer(data, "<i4", 3, 8).tolist() == [64, n_vocab, 4]
    assert len(data) == 20 + 4 * 4 * 64 + 4 * 31 * 2 * (2 * ((n_vocab + 1) // 2) + 4)
    assert StoredLogits(path).layout.n_chunk == 4
