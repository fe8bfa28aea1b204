"""Sampling options that another one switches off are named, once each; those that work are not."""

from typing import Any

import pytest
from moe_gguf.runner.ineffective import ineffective
from moe_gguf.runner.sampling import SamplingOptions


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({}, []),
        ({"temp": 0.0, "seed": 3}, ["--seed changes nothing: --temp 0 always takes the likeliest token"]),
        ({"temp": 0.0, "repeat_penalty": 1.1, "repeat_last_n": 9}, []),
        ({"top_k": 5, "samplers": ("top_p", "temperature")}, ["--top-k changes nothing: --samplers leaves top_k out"]),
        (
            {"mirostat": 2, "mirostat_tau": 3.0, "top_p": 0.5, "min_p": 0.1, "temp": 0.7},
            ["--top-p, --min-p change nothing: --mirostat is on"],
        ),
        ({"xtc_threshold": 0.2}, ["--xtc-threshold changes nothing: --xtc-probability is 0"]),
        ({"dry_base": 2.0, "dry_multiplier": 0.5}, []),
        ({"dry_base": 2.0}, ["--dry-base changes nothing: --dry-multiplier is 0"]),
        ({"repeat_last_n": 9}, ["--repeat-last-n changes nothing: no penalty is on"]),
        ({"dynatemp_exponent": 2.0}, ["--dynatemp-exp changes nothing: --dynatemp-range is 0"]),
    ],
)
def test_what_changes_nothing(chosen: dict[str, Any], said: list[str]) -> None:
    assert ineffective(SamplingOptions(**chosen, own=frozenset(chosen))) == said
    assert ineffective(SamplingOptions(**chosen)) == []
