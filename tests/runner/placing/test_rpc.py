"""A worker as the second device, for real: placement, memory on each side, tokens, and what happens when it dies."""

import signal
import socket
import subprocess
import threading
from typing import Any

import pytest
from moe_gguf.formats.errors import EngineError
from moe_gguf.runner.placing import rpc
from moe_gguf.runner.placing.devices import Device
from moe_gguf.runner.placing.rpc import add_servers, check_worker, is_loopback, parse_endpoint, served_devices

from ..tiny_moe import write_moe
from ..workers import COMMAND, SMOLLM, free_port, run_session, running_worker

PROMPT = [3, 141, 59, 26, 53, 58, 97, 93]
# flags by the name of what they try; each with the layers that keep their experts at home (None: all on the worker)
PLACES: dict[str, dict[str, Any]] = {
    "cpu": {"device": "none"},
    "all": {},
    "half": {"n_gpu_layers": "3"},
    "experts home": {"cpu_moe": True},
    "some experts home": {"n_cpu_moe": 2},
    "cache home": {"no_kv_offload": True},
    "planned": {"vram": "16M", "no_mmap": True},
    "one expert": {"n_expert_used": 1},
    "one expert, cpu": {"n_expert_used": 1, "device": "none"},
    "by pattern": {"override_tensor": (r"blk\.1\.ffn_.*=CPU,attn_v=CPU",)},
}


@pytest.fixture(scope="module")
def sessions(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """The results of loading a tiny mixture in every way, with one worker."""
    path = write_moe(tmp_path_factory.mktemp("models") / "tiny.gguf")
    with running_worker() as (address, _):
        cases = [{"ctx_size": 1024, "threads": 1, "rpc": address, **flags} for flags in PLACES.values()]
        results = run_session(path=str(path), cases=cases, prompt=PROMPT, n_predict=16)
    return dict(zip(PLACES, results, strict=True))


@pytest.mark.parametrize("place", PLACES)
def test_each_side_allocates_what_was_planned(sessions, place):
    planned, allocated = sessions[place]["planned"], sessions[place]["allocated"]
    assert set(allocated) == {name for name, sizes in planned.items() if any(sizes)}
    for name, sizes in allocated.items():
        for mine, theirs in zip(planned[name], sizes, strict=True):
            assert mine == pytest.approx(theirs, rel=0.03, abs=8192)


@pytest.mark.parametrize("place", [place for place in PLACES if not place.startswith("one expert")])
def test_greedy_tokens_are_those_of_the_cpu(sessions, place):
    assert sessions[place]["tokens"] == sessions["cpu"]["tokens"]
    assert sessions[place]["logits"] == pytest.approx(sessions["cpu"]["logits"], abs=1e-4)


def test_one_expert_per_token_is_another_model_and_the_same_on_both_sides(sessions):
    assert sessions["one expert"]["tokens"] == sessions["one expert, cpu"]["tokens"]
    assert sessions["one expert"]["logits"] != pytest.approx(sessions["cpu"]["logits"], abs=1e-4)


def test_parts_lie_where_the_flags_say(sessions):
    allocated = {place: result["allocated"] for place, result in sessions.items()}
    weights = {place: {name: sizes[0] for name, sizes in sides.items()} for place, sides in allocated.items()}
    assert "RPC0" not in weights["cpu"]
    assert weights["all"]["RPC0"] > 50 * weights["all"]["CPU"]
    assert weights["half"]["RPC0"] == pytest.approx(weights["half"]["CPU"], rel=0.05)
    assert weights["experts home"]["CPU"] > 6 * weights["experts home"]["RPC0"]
    assert allocated["cache home"]["RPC0"][1] == 0 < allocated["cache home"]["CPU"][1]
    assert allocated["all"]["CPU"][1] == 0 < allocated["all"]["RPC0"][1]
    planned = sessions["planned"]
    assert sum(planned["allocated"]["RPC0"]) <= 16 * 2**20
    assert planned["n_gpu_layers"] == 5 and planned["overrides"]
    assert planned["flags"][planned["flags"].index("--rpc") + 1].startswith("127.0.0.1:")


def generate(*flags: str) -> subprocess.Popen[bytes]:
    arguments = ["generate", SMOLLM, "-p", "Once upon a time", "--temp", "0", "-c", "1024", "-t", "1", *flags]
    return subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_real_model_says_the_same_from_a_worker_and_a_lost_worker_is_one_line():
    with running_worker() as (address, worker):
        alone, there = generate("-n", "24"), generate("-n", "24", "--rpc", address)
        text = alone.communicate(timeout=60)[0]
        assert there.communicate(timeout=60)[0] == text
        assert len(text) > 40
        talking = generate("-n", "900", "--rpc", address)
        assert talking.stdout and talking.stdout.read(40)
        worker.kill()
        _, errors = talking.communicate(timeout=60)
        assert talking.returncode == 1
        lines = errors.decode().strip().splitlines()
        assert lines[-1] == (
            f"moe-gguf: the connection to a worker was lost ({address}); start it again and repeat the command"
        )
        assert not any("Traceback" in line or "ggml" in line for line in lines)


def test_a_worker_that_is_not_there_is_named():
    with pytest.raises(EngineError, match=r"no worker answers at 127.0.0.1:\d+: .*moe-gguf worker"):
        add_servers([f"127.0.0.1:{free_port()}"])
    with pytest.raises(EngineError, match=r"host 'no.such.host.invalid' is unknown"):
        add_servers(["no.such.host.invalid:50052"])


@pytest.mark.parametrize("head", [b"", b"HTTP/1.0 404 Not Found\r\n\r\n"])
def test_an_http_server_is_called_that(monkeypatch, head):
    monkeypatch.setattr(rpc, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for reply in (head, b"HTTP/1.0 404 Not Found\r\n\r\n")[: 1 if head else 2]:
                connection, _ = server.accept()
                with connection:
                    asked = connection.recv(100)
                    # one that waits for a whole line hears of none in llama.cpp's greeting
                    connection.sendall(reply) if reply else connection.recv(1)
                    assert reply == head or asked.startswith(b"GET / ")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(EngineError, match="is an HTTP server, not a worker; start one there"):
            check_worker("127.0.0.1", server.getsockname()[1])
        thread.join()


def has_ipv6() -> bool:
    """Tell whether this machine has an IPv6 loopback."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_a_worker_at_an_ipv6_address_says_the_same():
    with running_worker("::1") as (address, worker):
        assert address.startswith("[::1]:")
        alone, there = generate("-n", "12"), generate("-n", "12", "--rpc", address)
        text, said = alone.communicate(timeout=60)[0], there.communicate(timeout=60)
        assert said[0] == text and there.returncode == 0, said[1]
        talking = generate("-n", "900", "--rpc", address)
        assert talking.stdout and talking.stdout.read(20)
        worker.kill()
        assert f"connection to a worker was lost ({address})" in talking.communicate(timeout=60)[1].decode()


def test_another_kind_of_server_is_no_worker():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            connection.sendall(b"220\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(EngineError, match=r"not a worker|no worker answers"):
            check_worker("127.0.0.1", port)
        thread.join()


def test_a_worker_that_serves_another_client_is_busy(monkeypatch):
    monkeypatch.setattr(rpc, "CONNECT_SECONDS", 0.3)
    with running_worker() as (address, _), socket.create_connection(parse_endpoint(address)) as client:
        client.sendall(bytes([14]) + (24).to_bytes(8, "little") + bytes(24))
        assert client.recv(8)
        with pytest.raises(EngineError, match="is busy: it serves one client at a time"):
            add_servers([address])


@pytest.mark.parametrize("text", ["", "host", "host:", ":5", "host:0", "host:70000", "host:port"])
def test_an_address_is_host_and_port(text):
    with pytest.raises(EngineError, match="write host:port"):
        parse_endpoint(text)


def test_addresses_are_read():
    assert parse_endpoint(" 192.168.1.20:50052") == ("192.168.1.20", 50052)
    assert parse_endpoint("[fe80::1]:50052") == ("fe80::1", 50052)
    with pytest.raises(EngineError, match="in brackets, such as"):
        parse_endpoint("fe80::1:50052")
    assert is_loopback("::1") and not is_loopback("::")
    assert is_loopback("127.0.0.1") and is_loopback("localhost") and is_loopback("127.8.8.8")
    assert not is_loopback("0.0.0.0") and not is_loopback("192.168.1.20") and not is_loopback("example.org")


def test_a_worker_offers_its_gpus_or_else_its_cpu():
    cpu, gpu, other = Device("CPU", "cpu", 1, 1), Device("CUDA0", "gpu", 1, 1), Device("RPC0", "rpc", 1, 1)
    assert served_devices([cpu, other]) == ["CPU"]
    assert served_devices([cpu, gpu, other]) == ["CUDA0"]


def test_ctrl_c_ends_a_worker():
    with running_worker() as (_, worker):
        worker.send_signal(signal.SIGINT)
        assert worker.wait(10) == 130
