"""`moe-gguf bench`: the table, the records, and combinations of settings."""

import json
from pathlib import Path

import pytest

from ..command import moe_gguf
from ..runner.tiny_gguf import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")


def test_the_table_is_llama_benchs(model: Path) -> None:
    outcome = moe_gguf("bench", model, "-p", "16", "-n", "4", "-r", "2", "-t", "1")
    lines = outcome.stdout.splitlines()
    assert outcome.status == 0 and len(lines) == 4 and len(set(map(len, lines))) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["model", "size", "params", "backend", "threads", "test", "t/s"]
    assert [row[5] for row in cells[2:]] == ["pp16", "tg4"]
    assert cells[2][3:5] == ["CPU", "1"] and all("±" in row[6] for row in cells[2:])


def test_settings_are_combined(model: Path) -> None:
    arguments = ("-p", "16,8", "-n", "0", "-r", "1", "-t", "1,2", "-b", "16,32", "-fa", "on,off", "-d", "0,8")
    outcome = moe_gguf("bench", model, *arguments, "-o", "json")
    records = json.loads(outcome.stdout)
    keys = ("n_prompt", "n_threads", "n_batch", "flash_attn", "n_depth")
    assert len({tuple(record[key] for key in keys) for record in records}) == len(records) == 32
    for record in records:
        assert len(record["samples_ns"]) == 1 and record["avg_ts"] > 0
        assert record["avg_ts"] == pytest.approx(record["n_prompt"] / record["avg_ns"] * 1e9, rel=1e-3)
    table = moe_gguf("bench", model, *arguments[:-2], "-ctk", "f32").stdout
    assert all(f"| {title} " in table.replace("  ", " ") for title in ("n_batch", "type_k", "fa"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-t", "x"), "write numbers above 0"),
        (("-t", "0"), "write numbers above 0"),
        (("-fa", "maybe"), "write auto, on or off"),
        (("-p", "0", "-n", "0"), "nothing to measure"),
        (("-p", "-5"), "write numbers"),
    ],
)
def test_mistakes_are_usage(model: Path, arguments: tuple[str, ...], message: str) -> None:
    outcome = moe_gguf("bench", model, *arguments)
    assert outcome.status == 2 and message in outcome.stderr


def test_an_unknown_cache_type_is_one_clear_line(model: Path) -> None:
    outcome = moe_gguf("bench", model, "-ctk", "q99", "-t", "1")
    assert outcome.status == 1 and "q99" in outcome.stderr and outcome.stderr.count("\n") == 1
