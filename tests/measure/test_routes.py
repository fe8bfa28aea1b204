"""`moe-gguf routes` against transformers' routers, and by what must be true of any routing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from moe_gguf.formats.imatrix_file import ImatrixFile, write_gguf_imatrix
from moe_gguf.jobs import imatrix as imatrix_job
from moe_gguf.jobs import routes as job
from moe_gguf.measure.expert_load import load_of
from moe_gguf.measure.routing import find_routes
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.losses import all_logits
from moe_gguf.runner.model import Model

from ..checkpoints import write_checkpoint
from ..command import convert, moe_gguf
from ..oracles.logits_cases import LOGITS, TOKENS, UPCYCLED
from ..oracles.router_choices import CASES, GOLDEN
from ..oracles.transformers_logits import GOLDEN as LOGITS_GOLDEN
from ..runner.tiny_gguf import N_EXPERT, N_LAYER, Fields, Tensors, write_tiny

EXPECTED = np.load(GOLDEN)
DENSE_LOGITS = np.load(LOGITS_GOLDEN)["dense"]
EXACT = LoadOptions(n_ctx=64, cache_type_k="f32", cache_type_v="f32", flash_attn="off", n_threads=1)
TEXT = "the cat and the hat in a land that had a thin can"


@pytest.mark.parametrize("name", CASES)
def test_choices_are_those_of_transformers_routers(name: str, tmp_path: Path) -> None:
    tiny = LOGITS[name]
    path = tmp_path / "tiny.gguf"
    assert convert(write_checkpoint(tmp_path / "tiny", tiny), path, "--outtype", "f32").status == 0
    with Model(path, EXACT) as model:
        routes = find_routes(model, EXACT, [TOKENS], tiny.n_expert)
    scores = np.exp(EXPECTED[name].astype(np.float64))
    probabilities = scores / scores.sum(axis=2, keepdims=True)
    n_used = tiny.n_expert_used
    np.testing.assert_array_equal(routes.experts, np.argsort(-scores, axis=2)[:, :, :n_used])
    best = -np.sort(-probabilities, axis=2)[:, :, :n_used]
    np.testing.assert_allclose(routes.weights, best / best.sum(axis=2, keepdims=True), atol=1e-4)
    np.testing.assert_allclose(routes.probabilities, probabilities.mean(axis=1), atol=1e-4)


def test_shares_of_equal_experts_add_up_to_one(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    assert convert(write_checkpoint(tmp_path / "tiny", UPCYCLED), path, "--outtype", "f32").status == 0
    with Model(path, EXACT) as model:
        routes = find_routes(model, EXACT, [TOKENS, TOKENS[:5]], UPCYCLED.n_expert)
    np.testing.assert_allclose(routes.shares.sum(axis=1), 1, rtol=1e-5)
    assert routes.tokens.sum() == len(routes.layers) * UPCYCLED.n_expert_used * (len(TOKENS) + 5)
    np.testing.assert_allclose(routes.summed().sum(axis=1), 1, rtol=1e-5)


def test_equal_experts_say_the_same_however_tokens_are_routed(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    assert convert(write_checkpoint(tmp_path / "tiny", UPCYCLED), path, "--outtype", "f32").status == 0
    found = []
    for n_used in range(1, UPCYCLED.n_expert + 1):
        options = replace(EXACT, n_expert_used=n_used)
        with Model(path, options) as model, Engine(model, options) as engine:
            found.append(all_logits(engine, 0, list(TOKENS)).copy())
            routes = find_routes(model, options, [TOKENS], UPCYCLED.n_expert)
        assert routes.experts.shape[2] == n_used
        np.testing.assert_allclose(routes.shares.sum(axis=1), 1, rtol=1e-5)
    for logits in found:
        np.testing.assert_allclose(logits, DENSE_LOGITS, atol=1e-4)


@pytest.fixture(scope="module")
def regated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the router of its last layer turned round."""

    def change(_: Fields, tensors: Tensors) -> None:
        name = f"blk.{N_LAYER - 1}.ffn_gate_inp.weight"
        tensors[name] = np.ascontiguousarray(tensors[name][::-1])

    return write_tiny(tmp_path_factory.mktemp("regated") / "regated.gguf", change)


def test_a_regated_model_is_told_from_its_original(tiny_path: Path, regated: Path) -> None:
    same = job.run(job.prepare(job.Request(tiny_path, TEXT, other=tiny_path)))
    assert same.agreement == (1.0, (1.0,) * N_LAYER)
    other = job.run(job.prepare(job.Request(tiny_path, TEXT, other=regated)))
    assert other.agreement and other.agreement[1][0] == 1.0 and other.agreement[1][-1] < 0.9


def test_json_has_the_shape_that_is_promised(tiny_path: Path) -> None:
    outcome = moe_gguf("routes", tiny_path, "-p", TEXT, "--json", "--tokens", "--compare", tiny_path)
    assert outcome.status == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert list(report) == [
        *("n_layer", "n_expert", "n_expert_used", "experts", "layers", "load", "coactivation", "agreement", "tokens"),
    ]
    assert (report["n_layer"], report["n_expert"], report["n_expert_used"]) == (N_LAYER, N_EXPERT, 2)
    assert report["experts"] == ["0", "1", "2", "3"] and len(report["layers"]) == N_LAYER
    n_token = len(report["tokens"])
    for number, layer in enumerate(report["layers"]):
        assert set(layer) == {"layer", "share", "tokens"} and layer["layer"] == number
        assert sum(layer["share"]) == pytest.approx(1) and sum(layer["tokens"]) == 2 * n_token
    load = report["load"]
    assert set(load) == {"cv", "aux_loss", "dead", "busiest", "entropy", "dropped", "layers"}
    assert list(load["dropped"]) == ["1.0", "1.25", "2.0"]
    assert "".join(token["text"] for token in report["tokens"]).endswith(TEXT)
    token = report["tokens"][3]
    assert set(token) == {"text", "experts", "weights"}
    assert np.shape(token["experts"]) == np.shape(token["weights"]) == (N_LAYER, 2)
    pairs = np.array(report["coactivation"])
    assert pairs.shape == (N_EXPERT, N_EXPERT)
    # Two experts for each token in each layer make one pair.
    assert np.triu(pairs, 1).sum() == pytest.approx(1)
    assert report["agreement"] == {"value": 1.0, "layers": [1.0] * N_LAYER}
    assert "tokens" not in json.loads(moe_gguf("routes", tiny_path, "-p", TEXT, "--json").stdout)


EXPERTS = [{"source_model": f"models/{name}"} for name in ("python", "scripture", "german", "manual")]


def test_experts_are_named_by_a_recipe_or_by_the_catalogue(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(json.dumps({"base_model": "models/base", "gate_mode": "random", "experts": EXPERTS}))
    outcome = moe_gguf("routes", tiny_path, "-p", TEXT, "--recipe", recipe)
    assert outcome.status == 0, outcome.stderr
    rows = outcome.stdout.splitlines()
    assert rows[0].split() == ["python", "scripture", "german", "manual"] and TEXT in rows[1]
    assert next(row.split() for row in rows if row.startswith("layer")) == ["layer", *rows[0].split()]
    assert sum(row.startswith(tuple(map(str, range(N_LAYER)))) for row in rows) == N_LAYER
    for line in ("(cv)", "busiest: ", "without a token: ", "auxiliary loss", "dropped by an expert capacity: "):
        assert sum(line in row for row in rows) == 1
    assert " + " in rows[-1] and rows[-1].startswith("most often together: ")
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "tiny-F32.gguf").symlink_to(tiny_path)
    experts = ", ".join(f'{{ source_model = "{each["source_model"]}" }}' for each in EXPERTS)
    (tmp_path / "models.toml").write_text(
        f'[models.tiny]\noutput = "gguf"\nbase_model = "models/base"\ngate_mode = "random"\nexperts = [{experts}]\n'
    )
    monkeypatch.chdir(tmp_path)
    report = json.loads(moe_gguf("routes", "tiny", "-p", TEXT, "--json").stdout)
    assert report["experts"] == ["python", "scripture", "german", "manual"]
    three = tmp_path / "three.yml"
    three.write_text(json.dumps({"base_model": "models/base", "gate_mode": "random", "experts": EXPERTS[:3]}))
    outcome = moe_gguf("routes", tiny_path, "-p", TEXT, "--recipe", three)
    assert outcome.status == 1 and "the recipe has 3 experts, and the model 4" in outcome.stderr


def test_counts_of_an_importance_matrix_are_the_tokens_of_a_text(tiny_path: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text((TEXT + ". ") * 20)
    request = imatrix_job.Request(tiny_path, tmp_path / "i.gguf", (text,), n_ctx=64)
    layers = imatrix_job.run(imatrix_job.prepare(request)).layers
    report = job.run(job.prepare(job.Request(None, imatrix=tmp_path / "i.gguf")))
    assert [tuple(row) for row in report.counts.tolist()] == [layer.tokens for layer in layers]
    assert report.load.aux_loss is None and report.as_json()["n_expert_used"] is None


def test_tokens_are_listed_with_their_experts_by_layer_or_over_all(tiny_path: Path) -> None:
    report = json.loads(moe_gguf("routes", tiny_path, "-p", TEXT, "--json", "--tokens").stdout)
    outcome = moe_gguf("routes", tiny_path, "-p", TEXT, "--tokens", "--layer", "1")
    rows = [row.split() for row in outcome.stdout.splitlines() if row.startswith("'")]
    assert len(rows) == len(report["tokens"])
    for row, token in zip(rows, report["tokens"], strict=True):
        weights = dict(zip(row[-4::2], map(float, row[-3::2]), strict=True))
        expected = dict(zip(map(str, token["experts"][1]), token["weights"][1], strict=True))
        assert weights == {expert: pytest.approx(weight, abs=0.006) for expert, weight in expected.items()}
    outcome = moe_gguf("routes", tiny_path, "-p", TEXT, "--layer", "9")
    assert outcome.status == 2 and f"--layer 9: layers with experts are 0 to {N_LAYER - 1}" in outcome.stderr


def test_matrices_that_say_nothing_of_the_model_s_experts_are_refused(tiny_path: Path, tmp_path: Path) -> None:
    dense, other = tmp_path / "dense.gguf", tmp_path / "other.gguf"
    one = np.ones((1, 64)), np.ones(1, int)
    write_gguf_imatrix(dense, ImatrixFile({"blk.0.attn_q.weight": one}, (), 1, 64))
    eight = np.ones((8, 64)), np.ones(8, int)
    write_gguf_imatrix(other, ImatrixFile({"blk.0.ffn_up_exps.weight": eight}, (), 1, 64))
    for path, words in ((dense, "has no experts"), (other, "8 experts, and"), (tiny_path, "no importance matrix")):
        outcome = moe_gguf("routes", tiny_path, "--imatrix", path)
        assert outcome.status == 1 and words in outcome.stderr and outcome.stderr.count("\n") == 1


def test_pictures_and_pages_are_written(tiny_path: Path, tmp_path: Path) -> None:
    png, svg, page = tmp_path / "a.png", tmp_path / "a.svg", tmp_path / "a.html"
    assert moe_gguf("routes", tiny_path, "-p", TEXT, "--plot", png, "--html", page).status == 0
    assert moe_gguf("routes", tiny_path, "-p", TEXT + " <b>", "--plot", svg, "--html", page, "--force").status == 0
    assert png.read_bytes().startswith(b"\x89PNG") and b"<svg" in svg.read_bytes()
    assert "&lt;" in page.read_text() and "<b>" not in page.read_text()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["-p", ""], "the text is empty"),
        (["-p", "a", "--plot", "a.jpg"], "name a picture .png or .svg"),
        (["-p", "a", "--html", "nowhere/a.html"], "name one in a folder that exists"),
        (["-p", "a", "--recipe", "nowhere.yml"], "nowhere.yml"),
        (["--imatrix", "no.gguf", "--tokens"], "does not exist"),
    ],
)
def test_refusals_are_one_line(tiny_path: Path, options: list[str], line: str) -> None:
    outcome = moe_gguf("routes", tiny_path, *options)
    assert outcome.status in (1, 2) and line in outcome.stderr and "Traceback" not in outcome.stderr


def test_load_tells_even_from_uneven() -> None:
    even = load_of((0,), np.full((1, 4), 10), np.full((1, 4), 0.25))
    assert (even.cv, even.entropy, even.aux_loss, even.dead) == (0, pytest.approx(1), pytest.approx(1), ())
    assert set(even.dropped.values()) == {0.0}
    one = load_of((3,), np.array([[40, 0, 0, 0]]), np.array([[1.0, 0, 0, 0]]))
    assert one.aux_loss == pytest.approx(4) and one.dead == ((3, 1), (3, 2), (3, 3)) and one.busiest == (3, 0, 1.0)
    assert one.dropped == {1.0: 0.75, 1.25: 0.6875, 2.0: 0.5} and one.entropy == 0


def test_a_router_that_gives_nan_is_named(tmp_path: Path) -> None:
    name = f"blk.{N_LAYER - 1}.ffn_norm.weight"
    write_tiny(tmp_path / "nan.gguf", lambda _, tensors: tensors[name].fill(np.nan))
    outcome = moe_gguf("routes", tmp_path / "nan.gguf", "-p", TEXT)
    assert outcome.status == 1 and f"the router of layer {N_LAYER - 1} gives NaN" in outcome.stderr
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 20)
    outcome = moe_gguf("imatrix", tmp_path / "nan.gguf", "-f", text, "-c", "64", "-o", tmp_path / "i.gguf")
    assert outcome.status == 1 and f"what blk.{N_LAYER - 1}.ffn_gate_inp.weight is multiplied by" in outcome.stderr
    assert not (tmp_path / "i.gguf").exists()
