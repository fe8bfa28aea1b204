"""Samplers that restrict: grammars, JSON schemas, biases, penalties; and values that mean nothing."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from moe_gguf.formats.errors import EngineError
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.generation import generate
from moe_gguf.runner.json_grammar import json_schema_grammar
from moe_gguf.runner.model import Model, is_end, tokenize
from moe_gguf.runner.sampling import Sampler, SamplingOptions

from ..loaded_models import ONE_THREAD

REPORT = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"},
        "kind": {"enum": ['a"b', 2, None]},
        "numbers": {"type": "array", "items": {"enum": [1, 22]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["ok", "kind", "numbers"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(tiny: Model) -> Iterator[Engine]:
    with Engine(tiny, ONE_THREAD) as engine:
        yield engine


def answer(engine: Engine, sampling: SamplingOptions, count: int = 60) -> str:
    """Return the answer to some prompt."""
    prompt = tokenize(engine.model, "the cat in")
    return "".join(piece.text for piece in generate(engine, prompt, sampling, n_predict=count))


@pytest.mark.parametrize("seed", range(8))
def test_a_grammar_is_obeyed(engine: Engine, seed: int) -> None:
    grammar = 'root ::= ("yes" | "no") ", " [a-c]{2} "é"'
    text = answer(engine, SamplingOptions(seed=seed, temp=1.5, grammar=grammar))
    assert text[:-3] in ("yes, ", "no, ") and set(text[-3:-1]) <= set("abc") and text.endswith("é")


@pytest.mark.parametrize("seed", range(6))
def test_a_json_schema_is_obeyed(engine: Engine, seed: int) -> None:
    grammar = json_schema_grammar(json.dumps(REPORT))
    found = json.loads(answer(engine, SamplingOptions(seed=seed, temp=1.2, grammar=grammar), 300))
    assert isinstance(found.pop("ok"), bool) and found.pop("kind") in ('a"b', 2, None)
    assert 1 <= len(found["numbers"]) <= 2 and set(found.pop("numbers")) <= {1, 22} and not found


@pytest.mark.parametrize("seed", range(4))
def test_json_strings_hold_no_control_characters(engine: Engine, seed: int) -> None:
    text = answer(engine, SamplingOptions(seed=seed, temp=1.2, grammar=json_schema_grammar('{"type": "string"}')), 80)
    assert text.startswith('"') and all(" " <= letter != "\x7f" for letter in text.strip())


def test_a_broken_grammar_is_one_clear_line(engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineError, match=r"the grammar is broken: line 1, column 11: '\)' is expected") as caught:
        answer(engine, SamplingOptions(grammar="root ::= ("))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("schema", "match"),
    [
        ("{", "the JSON schema is no JSON"),
        ("[]", "a schema is an object"),
        ('{"type": "nonsense"}', "type 'nonsense'"),
        ('{"$ref": "#/nowhere"}', "'#/nowhere' leads nowhere"),
        ('{"type": "string", "pattern": "a+"}', r"the pattern 'a\+' must begin with \^"),
        ('{"allOf": [{}, {}]}', "allOf"),
        ('{"type": "array", "minItems": 3, "maxItems": 1}', "no length between 3 and 1"),
        ("[" * 100_000, "no JSON|nests too deep"),
    ],
)
def test_a_broken_schema_is_one_clear_line(schema: str, match: str) -> None:
    with pytest.raises(EngineError, match=match):
        json_schema_grammar(schema)


def test_biases_force_and_forbid(engine: Engine) -> None:
    token = tokenize(engine.model, "z", add_special=False)[-1]
    forced = [piece.token for piece in generate(
        engine, [1, 5, 6], SamplingOptions(seed=1, logit_bias=((token, 1000.0),)), n_predict=5
    )]  # fmt: skip
    assert forced == [token] * 5
    everything = tuple((other, float("-inf")) for other in range(engine.model.n_vocab) if other != token)
    only = [piece.token for piece in generate(
        engine, [1, 5, 6], SamplingOptions(seed=1, logit_bias=everything), n_predict=5
    )]  # fmt: skip
    assert only == [token] * 5


def test_ends_can_be_ignored(engine: Engine) -> None:
    ends = [token for token in range(engine.model.n_vocab) if is_end(engine.model, token)]
    wished = SamplingOptions(seed=1, logit_bias=tuple((token, 100.0) for token in ends))
    assert [piece.finish for piece in generate(engine, [1, 5], wished, n_predict=9)] == ["end"]
    pieces = list(generate(engine, [1, 5], replace(wished, ignore_eos=True), n_predict=9))
    assert len(pieces) == 9 and pieces[-1].finish == "length"


def test_a_repeat_penalty_knows_the_prompt(engine: Engine) -> None:
    prompt = tokenize(engine.model, "the cat in the hat")
    greedy = SamplingOptions(temp=0, ignore_eos=True)
    plain = next(iter(generate(engine, prompt, greedy, n_predict=1))).token
    told = [*prompt[:1], plain, *prompt[1:]]
    favourite = next(iter(generate(engine, told, greedy, n_predict=1))).token
    punished = replace(greedy, repeat_penalty=50.0)
    found = [piece.token for piece in generate(engine, [*told, favourite], punished, n_predict=20)]
    assert len(set(found)) == len(found) and not set(found) & {*told, favourite}


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(seed=3, dry_multiplier=2.0),
        SamplingOptions(seed=3, xtc_probability=0.9, xtc_threshold=0.01),
        SamplingOptions(seed=3, top_n_sigma=1.0),
        SamplingOptions(seed=3, dynatemp_range=0.5),
        SamplingOptions(seed=3, presence_penalty=1.0, frequency_penalty=0.5),
    ],
)
def test_a_seed_repeats_itself(engine: Engine, options: SamplingOptions) -> None:
    options = replace(options, ignore_eos=True)
    assert answer(engine, options, 30) == answer(engine, options, 30) != answer(engine, replace(options, seed=4), 30)


def test_a_drawn_seed_is_told(engine: Engine) -> None:
    drawn = Sampler(engine.model, SamplingOptions())
    assert 0 <= drawn.seed < 2**32 - 1
    for asked in (-1, 2**32 - 1):
        assert 0 <= Sampler(engine.model, SamplingOptions(seed=asked)).seed < 2**32 - 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (SamplingOptions(repeat_penalty=0.0), "a repeat penalty of 0.0"),
        (SamplingOptions(repeat_penalty=float("nan")), "repeat_penalty is nan; it must be a finite number"),
        (SamplingOptions(presence_penalty=float("inf")), "presence_penalty is inf; it must be a finite number"),
        (SamplingOptions(mirostat=2, mirostat_tau=float("nan")), "mirostat_tau is nan"),
        (SamplingOptions(seed=2**32), "the seed 4294967296 does not fit"),
        (SamplingOptions(seed=-2), "the seed -2 does not fit"),
        (SamplingOptions(logit_bias=((1, float("inf")),)), "-inf forbids a token"),
        (SamplingOptions(grammar='root ::= "\udcff"'), "the grammar is not UTF-8 text: 'root"),
        (SamplingOptions(grammar='root ::= "a"\0'), "the grammar holds a zero byte"),
        (SamplingOptions(dry_sequence_breakers=("a", "\udcff")), "--dry-sequence-breaker is not UTF-8 text"),
        (SamplingOptions(mirostat=3), "no Mirostat 3"),
        (SamplingOptions(mirostat=1, temp=0), "Mirostat needs a temperature"),
        (SamplingOptions(logit_bias=((10**6, 1.0),)), "logit bias for token 1000000"),
    ],
)
def test_values_that_mean_nothing_are_one_clear_line(tiny: Model, options: SamplingOptions, match: str) -> None:
    with pytest.raises(EngineError, match=match):
        Sampler(tiny, options)
