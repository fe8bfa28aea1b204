"""Sampling that a file recommends: the numbers are those that llama-server shows under /props for the same fields."""

import json
from pathlib import Path
from typing import Any

import pytest
from moe_gguf.runner.model import Model
from moe_gguf.runner.recommended import with_recommended
from moe_gguf.runner.sampling import SAMPLERS, Sampler, SamplingOptions, sampler_name

from ..command import moe_gguf
from .tiny_gguf import Fields, write_tiny

FILE: dict[str, Any] = {
    "general.sampling.temp": 0.25,
    "general.sampling.top_k": 7,
    "general.sampling.top_p": 0.5,
    "general.sampling.min_p": "0.125",
    "general.sampling.penalty_repeat": 1.5,
    "general.sampling.penalty_last_n": 5,
    "general.sampling.sequence": "temp;top-k;nucleus;nonsense;min_p",
    "general.sampling.mirostat": "no number",
}
NOTHING_OF_ITS_OWN = SamplingOptions(own=frozenset())


def test_what_the_file_recommends_is_taken() -> None:
    found = with_recommended(NOTHING_OF_ITS_OWN, FILE)
    one = found.sampling
    assert (one.temp, one.top_k, one.top_p, one.min_p) == (0.25, 7, 0.5, 0.125)
    assert (one.repeat_penalty, one.repeat_last_n, one.mirostat) == (1.5, 5, 0)
    assert one.samplers == ("temperature", "top_k", "top_p", "min_p")
    assert found.note and found.note.startswith("sampling as the file recommends: top_k 7, top_p 0.5, min_p 0.125")


def test_flags_win_and_an_api_call_is_taken_as_it_is() -> None:
    own = SamplingOptions(temp=0.0, top_k=40, own=frozenset({"temp", "top_k", "samplers"}))
    found = with_recommended(own, FILE).sampling
    assert (found.temp, found.top_k, found.top_p, found.samplers) == (0.0, 40, 0.5, SAMPLERS)
    assert with_recommended(SamplingOptions(), FILE).sampling == SamplingOptions()
    assert with_recommended(NOTHING_OF_ITS_OWN, {}).note is None


@pytest.mark.parametrize("name", ["top_k", "top-k", "topk", "TOP_K", " top_k "])
def test_samplers_have_several_spellings(name: str) -> None:
    assert sampler_name(name) == "top_k"
    assert (sampler_name("typ"), sampler_name("infill")) == ("typ_p", None)


def test_every_order_of_samplers_is_a_chain(tiny: Model) -> None:
    for samplers in (SAMPLERS, SAMPLERS[::-1], ("temperature",), ()):
        Sampler(tiny, SamplingOptions(seed=1, samplers=samplers)).close()


def test_the_command_says_and_takes_it(tmp_path: Path) -> None:
    def recommend(fields: Fields, _: object) -> None:
        fields["general.sampling.temp"] = 0.0
        del fields["tokenizer.ggml.add_eos_token"]

    path = write_tiny(tmp_path / "tiny.gguf", recommend)
    options = ("-p", "the cat", "-n", "6", "-t", "1", "-c", "256", "--no-fit", "--ignore-eos")
    plain, seeded = moe_gguf("generate", path, *options), moe_gguf("generate", path, *options, "-s", "5")
    assert "sampling as the file recommends: temp 0" in plain.stderr
    assert plain.stdout == seeded.stdout == moe_gguf("generate", path, *options, "--temp", "0").stdout
    hot = moe_gguf("generate", path, *options, "--temp", "9", "--top-k", "0", "--json", "-s", "1")
    assert json.loads(hot.stdout)["text"] != plain.stdout.rstrip("\n") and "recommends" not in hot.stderr
    assert moe_gguf("generate", path, *options, "--samplers", "top_k;nonsense").status == 2
