"""What people type who know llama.cpp: understood, or answered in one line, never taken for another option."""

import signal
import subprocess
from pathlib import Path

import pytest

from ..command import moe_gguf
from ..runner.workers import COMMAND, SMOLLM

QUICK = ("-n", "2", "-c", "256", "-t", "1", "-q")
# words that llama-cli, llama-completion and llama-bench print in --help, and what is said of them here
ANSWERED = {
    "-hf": "download the file first",
    "--mmproj": "text only",
    "-no-cnv": "moe-gguf generate completes",
    "--lora": "merge the adapter first",
    "--rope-freq-base": "what the file says",
    "-md": "speculative decoding",
    "-np": "bench -np",
    "-sysz": "no such option: -sysz",
    "-tax": "no such option: -tax",
    "--nonsense": "No such option",
}


@pytest.mark.parametrize("word", ANSWERED)
def test_words_that_are_not_here_are_bad_usage(word: str) -> None:
    outcome = moe_gguf("chat", "model.gguf", word, "x")
    assert outcome.status == 2 and ANSWERED[word] in outcome.stderr and outcome.stdout == ""


def test_words_that_mean_the_same_are_taken(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "system").write_text("be brief\n")
    plain = moe_gguf("generate", tiny_path, "-p", "the cat", "-s", "1", *QUICK)
    known = ("--jinja", "-co", "on", "-e", "--no-warmup", "-kvo", "--color", "--mmap")
    outcome = moe_gguf("generate", "-m", tiny_path, *known, "-p", "the cat", "-s1", *QUICK)
    assert outcome.status == 0 and outcome.stdout == plain.stdout, outcome.stderr
    assert outcome.stderr.count("changes nothing") == 6
    system = moe_gguf("generate", tiny_path, "-p", "-hf", "-s", "1", "-sysf", tmp_path / "system", *QUICK)
    assert system.status == 0 and "download" not in system.stderr


def test_options_that_change_nothing_are_named(tiny_path: Path) -> None:
    flags = ("--temp", "0", "--top-k", "3", "--mirostat-ent", "2", "-ngl", "9", "-c", "4000")
    outcome = moe_gguf("generate", tiny_path, "-p", "a", "-n", "1", "-t", "1", "-q", *flags, "--no-fit")
    assert outcome.status == 0
    assert "--top-k changes nothing: --temp 0 always takes the likeliest token" in outcome.stderr
    assert "--mirostat-ent changes nothing: --mirostat is off" in outcome.stderr
    assert "-ngl changes nothing here: llama.cpp has no device beside the CPU" in outcome.stderr
    assert "a context of 4000 tokens is more than" in outcome.stderr


@pytest.mark.parametrize("while_it", ["waits", "answers"])
def test_ctrl_c_ends_a_chat_whose_messages_come_through_a_pipe(while_it: str) -> None:
    command = [*COMMAND, "chat", SMOLLM, "-t", "1", "-c", "2048", "--ignore-eos"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin and process.stdout and process.stderr
    if while_it == "answers":
        process.stdin.write(b"hi\n")
        process.stdin.flush()
        process.stdout.read(5)
    else:
        while b"/help shows" not in process.stderr.readline():
            pass
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.endswith(b"moe-gguf: interrupted\n") and b"Traceback" not in errors
