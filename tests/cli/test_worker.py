"""`moe-gguf worker`: where it listens, what it says about it, and what it refuses."""

import socket
import subprocess

import pytest
from click.testing import CliRunner
from moe_gguf.cli.root import root
from moe_gguf.formats.errors import EngineError

from ..runner.workers import COMMAND, free_port, wait_for


def test_help_says_that_there_is_no_authentication():
    text = " ".join(CliRunner().invoke(root, ["worker", "--help"]).stdout.split())
    assert "has no authentication and no encryption" in text
    assert "127.0.0.1" in text


@pytest.mark.parametrize(("host", "warned"), [(None, False), ("0.0.0.0", True)])
def test_it_says_what_it_serves_and_warns_when_others_can_reach_it(host, warned):
    port = free_port()
    arguments = ["worker", "-p", str(port), "-t", "1", *(["--host", host] if host else [])]
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_for("127.0.0.1", port, process)
    finally:
        process.kill()
    said = process.communicate()[1].decode()
    assert f"serving CPU; use it with --rpc {host or '127.0.0.1'}:{port}" in said
    assert ("no authentication" in said) == warned


def test_a_taken_port_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        with pytest.raises(EngineError, match=f"cannot listen on 127.0.0.1:{port}"):
            CliRunner().invoke(root, ["worker", "--port", port], catch_exceptions=False)


def test_an_unknown_device_or_host_is_one_line():
    with pytest.raises(EngineError, match="no device 'CUDA5'"):
        CliRunner().invoke(root, ["worker", "--port", str(free_port()), "-d", "CUDA5"], catch_exceptions=False)
    with pytest.raises(EngineError, match=r"cannot listen on no.such.host.invalid"):
        CliRunner().invoke(root, ["worker", "--host", "no.such.host.invalid"], catch_exceptions=False)
