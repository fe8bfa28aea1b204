"""How a process ends: signals at any moment, and what llama.cpp would abort on, are one line and a status."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..runner.workers import COMMAND, SMOLLM, running_worker

ABORTING = """
import ctypes
from moe_gguf.cli.process import own_process
from moe_gguf.formats.llamacpp import ggml, llama
own_process()
llama()
{act}
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start a command whose output can be waited for line by line."""
    return subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_load(number: signal.Signals, status: int) -> None:
    process = start("generate", SMOLLM, "-p", "a", "-n", "1", "--repack", "--no-mmap", "-c", "512", "-v")
    assert process.stderr and process.stdout
    told = []
    while not any("load_tensors" in line for line in told):
        told.append(process.stderr.readline())
    process.send_signal(number)
    told += process.stderr.readlines()
    assert process.wait(60) == status
    assert told[-1] == "moe-gguf: interrupted\n"
    assert not any("Traceback" in line or "Exception" in line for line in told)
    assert process.stdout.read() == ""


def test_a_signal_ends_an_answer_and_what_was_said_of_it_is_out() -> None:
    process = start("generate", SMOLLM, "-p", "a", "-n", "4000", "--ignore-eos", "-c", "8192", "-t", "1")
    assert process.stdout and process.stderr
    said = process.stdout.read(10)
    process.terminate()
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert len(said + out) >= 10 and errors.endswith("moe-gguf: interrupted\n") and "Traceback" not in errors


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_worker_that_computes_ends_cleanly(number: signal.Signals, status: int) -> None:
    with running_worker() as (address, worker):
        client = start("generate", SMOLLM, "-p", "a", "--ignore-eos", "-c", "1024", "-t", "1", "--rpc", address)
        assert client.stdout and client.stdout.read(10)
        worker.send_signal(number)
        assert worker.wait(30) == status
        assert worker.stderr and worker.stderr.read().endswith(b"moe-gguf: interrupted\n")
        client.communicate(timeout=60)
        assert client.returncode == 1


@pytest.mark.parametrize(
    ("act", "line"),
    [
        ("ggml('ggml-base').ggml_abort(b'a.c', 3, b'it is broken')", "llama.cpp cannot go on: a.c:3: it is broken"),
        ("ctypes.CDLL('libstdc++.so.6')._ZSt17__throw_bad_allocv()", "there is not enough memory for this"),
        ("ctypes.CDLL('libstdc++.so.6')._ZSt9terminatev()", "llama.cpp cannot go on"),
        ("ctypes.CDLL(None).abort()", "llama.cpp aborted"),
    ],
)
def test_an_abort_is_one_line(act: str, line: str) -> None:
    script = ABORTING.format(act=act)
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert process.returncode == 1 and process.stdout == ""
    assert process.stderr.startswith("moe-gguf: ") and line in process.stderr and process.stderr.count("\n") == 1


@pytest.mark.parametrize("megabytes", [250, 600])
def test_too_little_address_space_is_one_line(megabytes: int) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    arguments = ["generate", SMOLLM, "-p", "a", "-n", "2", "-t", "1", "-q", "-c", "60000"]
    process = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, preexec_fn=limit)
    lines = process.stderr.splitlines()
    assert process.returncode == 1 and lines[-1].startswith("moe-gguf: ")
    assert not any("Traceback" in line or "ggml" in line for line in lines)


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    script = (
        "import signal; from moe_gguf.cli.process import own_process; own_process(); print(repr(signal.getsignal(1)))"
    )
    out = subprocess.run(["nohup", sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert "SIG_IGN" in out.stdout
