"""Run `moe-gguf` inside the test's process: arguments in; exit status, stdout and stderr out."""

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from moe_gguf.cli.root import run


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    status: int
    stdout: str
    stderr: str


def moe_gguf(*arguments: str | Path) -> Outcome:
    """Run a command line; an exception that the command does not turn into a status passes through."""
    stdout, stderr = io.StringIO(), io.StringIO()
    status = 0
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            run([str(argument) for argument in arguments])
        except SystemExit as leave:
            status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    return Outcome(status, stdout.getvalue(), stderr.getvalue())


def convert(source: Path, target: Path, *options: str) -> Outcome:
    """Run `moe-gguf convert` quietly and without loading the result in llama.cpp."""
    return moe_gguf("convert", source, "-o", target, "--no-verify", "-q", *options)
