"""`moe-gguf generate`: what it prints, what it refuses, and Ctrl-C."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..command import moe_gguf
from ..runner.tiny_gguf import Fields, write_tiny

QUICK = ("-t", "1", "-c", "256", "--no-fit")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")


def test_the_answer_is_on_stdout_and_the_speed_on_stderr(model: Path) -> None:
    outcome = moe_gguf("generate", model, "-p", "the cat", "-n", "8", "-s", "1", "--ignore-eos", *QUICK)
    assert outcome.status == 0 and outcome.stdout.endswith("\n")
    assert "[8 tokens, " in outcome.stderr and "tokens/s" in outcome.stderr
    again = moe_gguf("generate", model, "-p", "the cat", "-n", "8", "-s", "1", "--ignore-eos", "-q", *QUICK)
    assert (again.stdout, again.stderr) == (outcome.stdout, "")


def test_json_tells_everything(model: Path) -> None:
    arguments = ("-p", "the cat", "-n", "5", "--temp", "0", "--ignore-eos", "--logprobs", "2", "--json")
    outcome = moe_gguf("generate", model, *arguments, *QUICK)
    report = json.loads(outcome.stdout)
    assert (outcome.status, report["finish"], len(report["tokens"])) == (0, "length", 5)
    assert report["prompt_tokens"][0] == 1 and report["model"] == str(model)
    assert [entry["token"] for entry in report["logprobs"]] == report["tokens"]
    assert all(entry["top"][0]["logprob"] == entry["logprob"] for entry in report["logprobs"])
    assert report["speed"]["n_generated"] == 5 and report["speed"]["n_prompt"] == len(report["prompt_tokens"])


def prompt_of(outcome_of: object) -> list[int]:
    """Return the prompt's tokens of a JSON report."""
    return json.loads(getattr(outcome_of, "stdout"))["prompt_tokens"]  # noqa: B009


def test_the_prompt_comes_from_many_places(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompt.txt").write_text("the cat\n")
    rest = ("-n", "0", "--json", *QUICK)
    by_flag = prompt_of(moe_gguf("generate", model, "-p", "the cat", *rest))
    assert prompt_of(moe_gguf("generate", model, "-f", tmp_path / "prompt.txt", *rest)) == by_flag
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n"))
    assert prompt_of(moe_gguf("generate", model, *rest)) == by_flag
    chat = prompt_of(moe_gguf("generate", model, "-p", "the cat", "-cnv", *rest))
    assert 3 in chat and 4 in chat and len(chat) > len(by_flag)
    assert prompt_of(moe_gguf("generate", model, "-p", "the cat", "--chat", *rest)) == chat
    with_system = prompt_of(moe_gguf("generate", model, "-p", "the cat", "-sys", "in a land", *rest))
    assert with_system.count(3) == chat.count(3) + 1


def test_escapes_are_llama_cpps(model: Path) -> None:
    rest = ("-n", "0", "--json", *QUICK)
    plain = prompt_of(moe_gguf("generate", model, "-p", "a\nb\tA\\", *rest, "--no-escape"))
    assert prompt_of(moe_gguf("generate", model, "-p", r"a\nb\t\x41\\", *rest)) == plain
    kept = prompt_of(moe_gguf("generate", model, "-p", r"a\q", *rest))
    assert kept == prompt_of(moe_gguf("generate", model, "-p", r"a\q", *rest, "--no-escape"))


def test_a_grammar_and_a_stop_string(model: Path) -> None:
    grammar = 'root ::= "yes" | "no"'
    outcome = moe_gguf("generate", model, "-p", "the", "--grammar", grammar, "-q", *QUICK)
    assert outcome.stdout in ("yes\n", "no\n")
    stopped = moe_gguf("generate", model, "-p", "the", "--grammar", 'root ::= "one, two"', "-r", ", ", "-q", *QUICK)
    assert stopped.stdout == "one\n"
    schema = '{"enum": ["only"]}'
    assert moe_gguf("generate", model, "-p", "the", "-j", schema, "-q", *QUICK).stdout == '"only"\n'


def test_a_full_context_is_told(model: Path) -> None:
    outcome = moe_gguf("generate", model, "-p", "the cat", "--ignore-eos", "-s", "1", *QUICK)
    assert outcome.status == 0 and "the context of 256 tokens is full" in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("-p", "a", "-f", __file__), 2, "not both"),
        (("-p", "a", "-sys", "b", "-no-cnv"), 2, "--system needs the chat template"),
        (("-p", "a", "--grammar", "x", "-j", "{}"), 2, "give one of --grammar"),
        (("-p", "a", "--grammar", "x"), 1, "the grammar is broken"),
        (("-p", "a", "-j", "{"), 1, "the JSON schema is no JSON"),
        (("-p", "a", "-l", "nonsense"), 2, "write TOKEN_ID+BIAS"),
        (("-p", "a", "-l", "99999+1"), 1, "logit bias for token 99999"),
        (("-p", "a", "--mirostat", "2", "--temp", "0"), 1, "Mirostat needs a temperature"),
        (("-p", "the cat " * 200), 1, "use a larger -c/--ctx-size"),
        (("-p", "a", "--top-p", "7"), 2, "--top-p"),
    ],
)
def test_mistakes_are_one_clear_line(model: Path, arguments: tuple[str, ...], status: int, message: str) -> None:
    outcome = moe_gguf("generate", model, *arguments, *QUICK)
    assert outcome.status == status and message in outcome.stderr and outcome.stdout == ""
    assert outcome.stderr.count("\n") == 1 or status == 2


def test_broken_files_and_templates_are_one_clear_line(tmp_path: Path, model: Path) -> None:
    data = model.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.gguf").write_text("hello")

    def change(fields: Fields, _: object) -> None:
        fields["tokenizer.chat_template"] = "{{ raise_exception('not today') }}"

    write_tiny(tmp_path / "raises.gguf", change)
    for name, message in (
        ("cut.gguf", "truncated"),
        ("text.gguf", "not a GGUF file"),
        ("raises.gguf", "the chat template fails: not today"),
    ):
        outcome = moe_gguf("generate", tmp_path / name, "-p", "a", "-cnv", *QUICK)
        assert outcome.status == 1 and message in outcome.stderr
        assert outcome.stderr.count("\n") == 1 and outcome.stdout == ""


def test_interrupting_ends_the_answer(model: Path) -> None:
    command = [sys.executable, "-c", "from moe_gguf.cli import main; main()", "generate", str(model)]
    command += ["-p", "the cat", "--ignore-eos", "-s", "1", "-t", "1", "-c", "60000", "--no-fit"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    process.stdout.read(20)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "tokens/s" in errors.decode() and errors.decode().endswith("moe-gguf: interrupted\n")
