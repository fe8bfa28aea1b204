"""Types under a budget: the size is kept, what is sensitive gets the bits, and llama-quantize's words reproduce it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from moe_gguf.formats.errors import PlanError
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.quantize.budget import allocate, frontier, options_of
from moe_gguf.quantize.choices import MixOptions, TypeChoice
from moe_gguf.quantize.facts import facts_of
from moe_gguf.quantize.file_types import parse_file_type
from moe_gguf.quantize.mixes import choose_types
from moe_gguf.quantize.sensitivity import Sensitivity, read_sensitivity
from moe_gguf.quantize.stock_policy import stock

from ..command import moe_gguf
from ..quantize.stock import StockJob, run_stock
from ..quantize.tiny_files import write_tiny

ROLES = {"ATTN_V": 0.125, "OUTPUT": 0.031, "FFN_DOWN": 0.029, "FFN_UP": 0.025, "FFN_GATE": 0.015}
ROLES |= {"ATTN_OUTPUT": 0.011, "ATTN_K": 0.011, "ATTN_Q": 0.01, "TOKEN_EMBD": 0.004}
BY_KIND = {role: {"symmetric": nats / 4, "asymmetric": nats} for role, nats in ROLES.items()}
FOUND = Sensitivity("tiny", "text", BY_KIND, {0: 1.2, 1: 1.0, 2: 0.8}, floor=0.003)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny-F32.gguf")


@pytest.fixture
def sensitivity(tmp_path: Path) -> Path:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(FOUND.as_json()))
    return path


def choices_of(model: Path) -> list[TypeChoice]:
    file = read_gguf(model)
    facts = facts_of(file.metadata, file.tensors)
    choices = choose_types(facts, list(file.tensors.values()), stock(parse_file_type("Q4_K_S")), MixOptions())
    return [choice for choice in choices if not choice.kept]


def test_every_budget_is_kept_and_more_bytes_never_cost_more(model: Path) -> None:
    choices = choices_of(model)
    options = options_of(choices, FOUND)
    smallest = sum(min(option.n_bytes for option in row) for row in options.values())
    largest = sum(max(option.n_bytes for option in row) for row in options.values())
    before = float("inf")
    for step in range(12):
        budget = smallest + (largest - smallest) * step // 11
        found = allocate(choices, FOUND, budget)
        assert found.n_bytes <= budget and found.predicted_kld <= before
        assert budget - found.n_bytes < 80_000  # less than the cheapest upgrade of a matrix
        before = found.predicted_kld
    assert set(allocate(choices, FOUND, largest).types.values()) == {parse_file_type("Q8_0").qtype}
    with pytest.raises(PlanError, match="the smallest types"):
        allocate(choices, FOUND, smallest - 1)


def test_no_single_exchange_of_two_tensors_types_does_better(model: Path) -> None:
    choices = choices_of(model)
    options = options_of(choices, FOUND)
    budget = sum(choice.n_bytes for choice in choices)
    chosen = allocate(choices, FOUND, budget)
    now = {name: next(o for o in row if o.qtype == chosen.types[name]) for name, row in options.items()}
    spare = budget - chosen.n_bytes
    gains = [
        (a.cost + b.cost) - (x.cost + y.cost)
        for one, a in now.items()
        for other, b in now.items()
        if one < other
        for x in options[one]
        for y in options[other]
        if x.n_bytes + y.n_bytes <= a.n_bytes + b.n_bytes + spare
    ]
    assert max(gains) < 0.02 * chosen.predicted_kld
    v = {now[name].n_bytes / next(c for c in choices if c.name == name).n_bytes for name in now if "attn_v" in name}
    assert min(v) > 1.1


def test_measured_errors_decide_between_types_of_one_size(model: Path) -> None:
    choices = choices_of(model)
    errors = {"Q2_K": 9.0, "Q3_K": 4.0, "IQ4_XS": 1.6, "Q4_K": 1.0, "Q4_0": 0.9, "IQ4_NL": 0.7, "Q4_1": 0.8}
    errors |= {"Q5_0": 0.4, "Q5_K": 0.3, "Q5_1": 0.5, "Q6_K": 0.08, "Q8_0": 0.01}
    found = replace(FOUND, errors={choice.name: errors for choice in choices})
    curve = frontier(choices, found)
    bought = {option.qtype.name for _, option in curve.steps}
    assert bought <= {"Q3_K", "IQ4_NL", "Q5_K", "Q6_K", "Q8_0"} and "IQ4_NL" in bought
    for n_bytes in curve.sizes[::7]:
        assert set(curve.at(n_bytes).types.values()).isdisjoint({GGMLQuantizationType.Q5_1, GGMLQuantizationType.Q4_1})
    # What a type costs is measured against the reference of its kind, whose cost is the role's; Q8_0 costs nothing.
    row = {option.qtype.name: option.cost for option in options_of(choices, found)["blk.1.attn_v.weight"]}
    assert row["Q8_0"] == 0 and row["Q4_K"] == pytest.approx(ROLES["ATTN_V"] / 3)
    assert row["Q5_K"] == pytest.approx(row["Q4_K"] * 0.3)
    assert row["Q5_0"] == pytest.approx(row["Q4_K"] / 4) and row["Q6_K"] == pytest.approx(row["Q5_0"] / 5)


def test_a_kind_whose_errors_cost_more_is_not_bought_for_its_smaller_errors(model: Path) -> None:
    choices = choices_of(model)
    errors = {"Q5_0": 1.0, "Q5_1": 0.3, "Q4_1": 0.5, "Q4_0": 4.0, "IQ4_NL": 3.0, "Q4_K": 0.5, "Q5_K": 0.3, "Q8_0": 0.02}
    costly = {role: {"symmetric": nats, "asymmetric": 3 * nats} for role, nats in ROLES.items()}
    found = replace(FOUND, roles=costly, errors={choice.name: errors for choice in choices})
    bought = {option.qtype.name for _, option in frontier(choices, found).steps}
    assert "Q5_0" in bought and bought.isdisjoint({"Q5_1", "Q5_K", "Q4_1"})
    # Errors of one size cost at least what random ones do, even where none was noticed.
    unnoticed = {role: {"symmetric": nats, "asymmetric": 0.0} for role, nats in ROLES.items()}
    for row in options_of(choices, replace(found, roles=unnoticed)).values():
        costs = {option.qtype.name: option.cost for option in row}
        assert costs["Q4_1"] == pytest.approx(costs["Q5_0"] / 2) and costs["Q8_0"] == 0 < costs["Q5_1"]


def test_small_roles_may_have_16_bits_where_that_gains_something(model: Path) -> None:
    choices = choices_of(model)
    curve = frontier(choices, replace(FOUND, exact={"ATTN_V": 0.001, "ATTN_K": 0.0}))
    exact = {name for name, option in curve.steps if option.qtype == GGMLQuantizationType.F16}
    assert exact == {choice.name for choice in choices if "attn_v" in choice.name}
    best = curve.at(curve.largest)
    assert best.predicted_kld == pytest.approx(FOUND.floor - 0.001)
    assert {best.types[name] for name in exact} == {GGMLQuantizationType.F16}


def test_a_file_of_the_size_and_the_words_that_reproduce_it(model: Path, sensitivity: Path, tmp_path: Path) -> None:
    out = f"{tmp_path}/"
    asked = ("quantize", model, "--target-bpw", "5.6", "--sensitivity", sensitivity, "-o", out, "--json", "-q")
    done = moe_gguf(*asked)
    assert done.status == 0, done.stderr
    report = json.loads(done.stdout)["outputs"][0]
    path, budget = Path(report["path"]), report["budget"]
    assert re.fullmatch(r".*-Q\d_K(_[SML])?_X\.gguf", path.name)
    assert budget["bytes"] * 0.97 < path.stat().st_size <= budget["bytes"] and budget["predicted_kld"] > 0.003
    words = tmp_path / "types.txt"
    words.write_text("\n".join(f"{row['pattern']}={row['type']}" for row in budget["mix"]))
    again = moe_gguf(
        "quantize", model, "--type", "Q4_K_S", "--tensor-type-file", words, "-o", tmp_path / "b.gguf", "-q"
    )
    assert again.status == 0, again.stderr
    made, copy = read_gguf(path).tensors, read_gguf(tmp_path / "b.gguf").tensors
    assert {name: t.qtype for name, t in made.items()} == {name: t.qtype for name, t in copy.items()}


def test_llama_cpps_quantizer_makes_the_same_bytes_of_these_words(
    model: Path, sensitivity: Path, tmp_path: Path
) -> None:
    out, theirs = tmp_path / "a.gguf", tmp_path / "b.gguf"
    done = moe_gguf("quantize", model, "--target-bpw", "4.9", "--sensitivity", sensitivity, "-o", out, "--json", "-q")
    report = json.loads(done.stdout)["outputs"][0]
    mix = [(row["pattern"], GGMLQuantizationType[row["type"].upper()]) for row in report["budget"]["mix"]]
    assert len({qtype for _, qtype in mix}) > 2
    base = parse_file_type(report["type"].removesuffix("_X"))
    run_stock(StockJob(str(model), str(theirs), base.ftype, tensor_types=mix))
    ours, stock_made = read_gguf(out).tensors, read_gguf(theirs).tensors
    assert {name: t.qtype for name, t in ours.items()} == {name: t.qtype for name, t in stock_made.items()}
    for name, tensor in ours.items():
        other = stock_made[name]
        a = np.fromfile(tensor.path, np.uint8, tensor.n_bytes, offset=tensor.offset)
        b = np.fromfile(other.path, np.uint8, other.n_bytes, offset=other.offset)
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_what_cannot_be_is_refused(model: Path, sensitivity: Path, tmp_path: Path) -> None:
    tight = moe_gguf("quantize", model, "--target-size", "100K", "--sensitivity", sensitivity, "--dry-run")
    assert tight.status == 1 and "smallest types" in tight.stderr
    for options in (["--target-bpw", "5"], ["--sensitivity", str(sensitivity)], []):
        assert moe_gguf("quantize", model, *options, "--dry-run").status == 2
    broken = tmp_path / "broken.json"
    for text in ("", "[]", '{"format": "moe-gguf sensitivity", "version": 3, "roles": {"X": 1}, "exact": {}}'):
        broken.write_text(text)
        with pytest.raises(PlanError, match="no file of sensitivities"):
            read_sensitivity(broken)
