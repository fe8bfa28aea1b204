"""Arguments that no option means: bytes that are no text, NaN, empty names; and text files as editors write them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from moe_gguf.cli.generate import read_prompt
from moe_gguf.cli.sampling_options import NUMBERS
from moe_gguf.formats.text_files import read_text_file

from ..command import moe_gguf
from ..merge.tiny_gguf import write_gguf_of
from .test_nothing_is_lost import refused

MAIN = [sys.executable, "-c", "from moe_gguf.cli import main; main()"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf_of(tmp_path_factory.mktemp("model"), "mixtral-mistral")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--grammar", 'root ::= "\udcff"'), r"the grammar is not UTF-8 text: 'root ::= "),
        (("--dry-sequence-breaker", "\udcff"), "--dry-sequence-breaker is not UTF-8 text"),
        (("-ot", "blk\udcff=CPU"), r"-ot is not UTF-8 text: 'blk\udcff'"),
        (("-dev", "GPU\udcff"), "there is no device"),
        (("-ts", "nan"), "-ts 'nan'"),
        (("-l", "1+inf"), "-inf forbids a token"),
    ],
)
def test_values_that_are_no_text_or_number_are_one_line(model: Path, arguments: tuple[str, str], said: str) -> None:
    refused(moe_gguf("generate", model, "-p", "hi", "-n", "1", "-t", "1", *arguments), said)


@pytest.mark.parametrize("host", ["h\udcff", "a..b", "x" * 70])
def test_a_worker_that_cannot_be_a_host_is_one_line(host: str) -> None:
    from moe_gguf.formats.errors import EngineError
    from moe_gguf.runner.placing.rpc import _bindable_address, _ipv4_address

    for find in (_ipv4_address, _bindable_address):
        with pytest.raises(EngineError, match=r"no name that a host can have|unknown|cannot listen"):
            find(host, 50052)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_no_sampling_option_takes_what_is_no_number(value: str) -> None:
    for (name, *_), _, default, _ in NUMBERS:
        outcome = moe_gguf("generate", "x.gguf", "-p", "hi", name, value)
        assert outcome.status == 2 and f"'{name}'" in outcome.stderr, (name, default, outcome.stderr)


@pytest.mark.parametrize("seed", ["-2", str(2**32), "9" * 30])
def test_a_seed_has_32_bits(seed: str) -> None:
    refused(moe_gguf("generate", "x.gguf", "-p", "hi", "-s", seed), "--seed", status=2)


def test_an_empty_output_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(moe_gguf("quantize", model, "--type", "Q8_0", "-o", ""), "-o '' names neither a file nor a folder")
    recipe = model.parent / "models" / "recipe.yml"
    refused(moe_gguf("merge", recipe, "-o", ""), "-o DIR", status=2)
    refused(moe_gguf("merge", recipe), "-o DIR", status=2)
    refused(moe_gguf("merge", tmp_path / "no.yml"), "-o DIR", status=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["inspect", "fit", "devices"])
def test_a_reader_that_goes_away_is_no_failure(verb: str, model: Path) -> None:
    arguments = [verb] if verb == "devices" else [verb, str(model)]
    read, write = os.pipe()
    os.close(read)
    program = subprocess.run([*MAIN, *arguments], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (program.returncode, program.stderr) == (141, "")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_text_files_of_any_editor(encoding: str, line_end: str, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(f"Über{line_end}{line_end}den Wipfeln{line_end}".encode(encoding))
    assert read_text_file(path) == "Über\n\nden Wipfeln\n"
    assert read_prompt(None, str(path), escape=True) == "Über\n\nden Wipfeln"


def test_a_grammar_file_with_a_byte_order_mark(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "grammar.gbnf"
    path.write_bytes(b'\xef\xbb\xbfroot ::= "yes"\r\n')
    outcome = moe_gguf("generate", model, "-p", "hi", "-t", "1", "-q", "--grammar-file", path)
    assert (outcome.status, outcome.stdout) == (0, "yes\n"), outcome.stderr
    path.write_bytes(b'root ::= "\xff"')
    assert (
        moe_gguf("generate", model, "-p", "hi", "-t", "1", "-q", "--grammar-file", path).stdout
        == "\N{REPLACEMENT CHARACTER}\n"
    )


def test_piped_text_with_a_byte_order_mark(model: Path) -> None:
    arguments = [*MAIN, "generate", str(model), "-n", "1", "-t", "1", "--json", "-q"]
    marked, plain = (
        subprocess.run(arguments, input=text, capture_output=True, check=True).stdout
        for text in (b"\xef\xbb\xbfthe cat\r\n", b"the cat\n")
    )
    import json

    assert json.loads(marked)["prompt_tokens"] == json.loads(plain)["prompt_tokens"]


def test_a_catalogue_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_bytes(b'\xef\xbb\xbf[models.a]\r\npath = "nowhere"\r\n')
    refused(moe_gguf("--catalogue", path, "inspect", "a"), "nowhere does not exist")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.gguf")
    refused(moe_gguf("inspect", tmp_path / "a.gguf"), "neither a file nor a folder")


@pytest.mark.parametrize("override", ["a\udcff=str:b", "a=str:\udcff"])
def test_an_override_that_is_no_text(model: Path, override: str) -> None:
    refused(moe_gguf("quantize", model, "--type", "Q8_0", "--dry-run", "--override-kv", override), "is not UTF-8 text")
