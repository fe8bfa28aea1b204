"""Other machines' devices through llama.cpp's RPC backend: serve this machine's, or add those of workers.

Comes in: host and port. Goes out: registered devices named RPC0, RPC1, ... The protocol has no authentication
and no encryption. llama.cpp ends the process when a worker goes away; what is said then is up to who owns the process.
"""

import ctypes
import ipaddress
import os
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any

from ...formats.errors import EngineError
from ..linked import linked
from .devices import Device, device_handle, list_devices
from .relay import relay

REBUILD = (
    'CMAKE_ARGS="-DGGML_RPC=ON" pip install --no-cache-dir --force-reinstall '
    "--no-binary llama-cpp-python llama-cpp-python"
)
CONNECT_SECONDS = 5.0
HTTP_SECONDS = 1.0
LOOPBACK = "127.0.0.1"
POINTER = ctypes.c_void_p
HELLO, HELLO_BYTES = 14, 24


def rpc_function(name: str, arguments: Sequence[Any], result: Any) -> Any:
    """Return a function of libggml-rpc; raises EngineError with the command that rebuilds a build without it."""
    try:
        return linked(name, "ggml-rpc", tuple(arguments), result)
    except EngineError as error:
        raise EngineError(f"this build of llama.cpp has no RPC backend; rebuild it: {REBUILD}") from error


def parse_endpoint(text: str) -> tuple[str, int]:
    """Return (host, port) of "host:port"; raises EngineError for anything else."""
    host, _, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise EngineError(f"{text!r}: write an IPv6 address in brackets, such as [fe80::1]:50052")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise EngineError(f"{text!r} is not a worker's address; write host:port, such as 192.168.1.20:50052")
    return host, int(port)


def endpoint_text(host: str, port: int) -> str:
    """Return "host:port", an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Tell whether a server bound to `host` can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(host: str, port: int, n_threads: int, device_names: Sequence[str] = (), cache_dir: str | None = None) -> None:
    """Serve local devices (GPUs, else the CPU) until the process ends.

    Raises EngineError when the address is taken or cannot be bound, or when the build has no RPC backend.
    """
    pointers, size, text = ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_char_p
    start = rpc_function("ggml_backend_rpc_start_server", (text, text, size, size, pointers), None)
    where = endpoint_text(host, port)
    address, port = _bindable_address(host, port)
    handles = [device_handle(name) for name in device_names or served_devices(list_devices())]
    array = (ctypes.c_void_p * len(handles))(*handles)
    folder = os.fsencode(cache_dir) if cache_dir else None
    arguments = (f"{address}:{port}".encode(), folder, n_threads, len(handles), array)
    # in a thread of its own, because Ctrl-C only reaches a main thread that runs Python
    server = threading.Thread(target=start, args=arguments, daemon=True)
    server.start()
    while server.is_alive():
        server.join(0.5)
    raise EngineError(f"the worker on {where} stopped; llama.cpp's own message is above")


def _bindable_address(host: str, port: int) -> tuple[str, int]:
    """Return the IPv4 address and port for llama.cpp after binding `host` once, because its own errors say too little.

    For an IPv6 address they are of the loopback interface, and what comes to the address is relayed there.
    """
    try:
        family, address = resolved(host, port)
        if family == socket.AF_INET6:
            listener = socket.create_server(address[:2], family=family, dualstack_ipv6=address[0] == "::")
            with socket.create_server((LOOPBACK, 0)) as probe:
                inner = probe.getsockname()[1]
            relay(listener, lambda: socket.create_connection((LOOPBACK, inner)))
            return LOOPBACK, inner
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            if sys.platform != "win32":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except UnicodeError as error:
        raise EngineError(f"the worker cannot listen on {host!r}: no name that a host can have") from error
    except OSError as error:
        raise EngineError(
            f"the worker cannot listen on {endpoint_text(host, port)}: {error.strerror or error}"
        ) from error
    return address[0], port


def resolved(host: str, port: int) -> tuple[int, tuple[Any, ...]]:
    """Return the address family and socket address of a host, an IPv4 one when there is one.

    Raises OSError and UnicodeError.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, *_, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    return family, address


def served_devices(devices: Sequence[Device]) -> list[str]:
    """Return the names of the devices that a worker offers: its GPUs, or its CPU when it has none."""
    local = [device.name for device in devices if device.kind in ("gpu", "igpu")]
    return local or [device.name for device in devices if device.kind == "cpu"]


def add_servers(endpoints: Sequence[str]) -> list[str]:
    """Connect to workers and register their devices; return the names, in the order of `endpoints`.

    Adding a worker again returns its devices. Raises EngineError when one cannot be reached, does not speak
    this version of the protocol, or has no device. From then on a worker that goes away ends the process.
    """
    connect = rpc_function("ggml_backend_rpc_add_server", (ctypes.c_char_p,), POINTER)
    register = linked("ggml_backend_register", "ggml", (POINTER,))
    open_backend = linked("ggml_backend_dev_init", "ggml-base", (POINTER, ctypes.c_char_p), POINTER)
    first_device = linked("ggml_backend_reg_dev_get", "ggml-base", (POINTER, ctypes.c_size_t), POINTER)
    names = []
    for endpoint in endpoints:
        host, port = parse_endpoint(endpoint)
        name = endpoint_text(host, port)
        if name not in _added:
            address = _ipv4_address(host, port)
            check_worker(host, port)
            registry = connect(address.encode())
            if not registry:
                raise EngineError(f"the worker {endpoint} offers no device")
            before = {device.name for device in list_devices()}
            register(registry)
            # a backend holds the connection: without one llama.cpp connects anew for every question, and could
            # find that the worker's only place was given to another client meanwhile
            _held.append(open_backend(first_device(registry, 0), None))
            _added[name] = [device.name for device in list_devices() if device.name not in before]
        names += _added[name]
    return names


def workers() -> list[str]:
    """Return the addresses of the workers that this process uses: llama.cpp forgets none."""
    return list(_added)


_added: dict[str, list[str]] = {}
_held: list[int] = []


def _ipv4_address(host: str, port: int) -> str:
    """Return the ADDRESS:PORT at which llama.cpp reaches a worker; a worker with IPv6 alone through a relay."""
    try:
        family, address = resolved(host, port)
    except UnicodeError as error:
        raise EngineError(f"the worker's host {host!r} is no name that a host can have") from error
    except OSError as error:
        raise EngineError(f"the worker's host {host!r} is unknown: {error.strerror or error}") from error
    if family == socket.AF_INET:
        return f"{address[0]}:{port}"
    listener = socket.create_server((LOOPBACK, 0))
    relay(listener, lambda: socket.create_connection(address[:2]))
    return f"{LOOPBACK}:{listener.getsockname()[1]}"


def check_worker(host: str, port: int) -> None:
    """Greet a worker the way llama.cpp does, so that a wrong address is an error rather than an abort.

    The greeting is RPC_CMD_HELLO of ggml/src/ggml-rpc/ggml-rpc.cpp, numbers little-endian:
    | 14, 1 byte | 24, 8 bytes | 24 zeros |, answered by | size, 8 bytes | major, minor, patch, 1 byte each | ... |.
    Raises EngineError.
    """
    where, answer, silent = endpoint_text(host, port), b"", False
    advice = f"start one there with `moe-gguf worker --port {port}`"
    try:
        with socket.create_connection((host, port), CONNECT_SECONDS) as connection:
            connection.sendall(bytes([HELLO]) + HELLO_BYTES.to_bytes(8, "little") + bytes(HELLO_BYTES))
            try:
                answer = _receive(connection, 11)
            except TimeoutError:
                silent = True
    except OSError as error:
        raise EngineError(f"no worker answers at {where}: {error.strerror or error}; {advice}") from error
    if answer.startswith(b"HTTP/") or (len(answer) < 11 and speaks_http(host, port)):
        raise EngineError(f"{where} is an HTTP server, not a worker; {advice}")
    if silent:
        raise EngineError(f"the worker at {where} is busy: it serves one client at a time")
    if len(answer) < 11:
        raise EngineError(f"what answers at {where} is not a worker, or one of another version of llama.cpp")


def speaks_http(host: str, port: int) -> bool:
    """Tell whether what listens there answers HTTP; a worker would close the connection."""
    try:
        with socket.create_connection((host, port), HTTP_SECONDS) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return _receive(connection, 5) == b"HTTP/"
    except OSError:
        return False


def _receive(connection: socket.socket, n_bytes: int) -> bytes:
    received = b""
    while len(received) < n_bytes and (piece := connection.recv(n_bytes - len(received))):
        received += piece
    return received
