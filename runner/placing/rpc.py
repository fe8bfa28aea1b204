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

REBUILD = (
    'CMAKE_ARGS="-DGGML_RPC=ON" pip install --no-cache-dir --force-reinstall '
    "--no-binary llama-cpp-python llama-cpp-python"
)
CONNECT_SECONDS = 5.0
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
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise EngineError(f"{text!r} is not a worker's address; write host:port, such as 192.168.1.20:50052")
    return host, int(port)


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
    address = _bindable_address(host, port)
    handles = [device_handle(name) for name in device_names or served_devices(list_devices())]
    array = (ctypes.c_void_p * len(handles))(*handles)
    folder = os.fsencode(cache_dir) if cache_dir else None
    arguments = (f"{address}:{port}".encode(), folder, n_threads, len(handles), array)
    # in a thread of its own, because Ctrl-C only reaches a main thread that runs Python
    server = threading.Thread(target=start, args=arguments, daemon=True)
    server.start()
    while server.is_alive():
        server.join(0.5)
    raise EngineError(f"the worker on {host}:{port} stopped; llama.cpp's own message is above")


def _bindable_address(host: str, port: int) -> str:
    """Return the IPv4 address of `host` after binding it once, because llama.cpp says too little when it cannot."""
    try:
        address = socket.gethostbyname(host)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            if sys.platform != "win32":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except UnicodeError as error:
        raise EngineError(f"the worker cannot listen on {host!r}: no name that a host can have") from error
    except OSError as error:
        raise EngineError(f"the worker cannot listen on {host}:{port}: {error.strerror or error}") from error
    return address


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
        address = f"{_resolve(host)}:{port}"
        if address not in _added:
            check_worker(host, port)
            registry = connect(address.encode())
            if not registry:
                raise EngineError(f"the worker {endpoint} offers no device")
            before = {device.name for device in list_devices()}
            register(registry)
            # a backend holds the connection: without one llama.cpp connects anew for every question, and could
            # find that the worker's only place was given to another client meanwhile
            _held.append(open_backend(first_device(registry, 0), None))
            _added[address] = [device.name for device in list_devices() if device.name not in before]
        names += _added[address]
    return names


def workers() -> list[str]:
    """Return the addresses of the workers that this process uses: llama.cpp forgets none."""
    return list(_added)


_added: dict[str, list[str]] = {}
_held: list[int] = []


def _resolve(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except UnicodeError as error:
        raise EngineError(f"the worker's host {host!r} is no name that a host can have") from error
    except OSError as error:
        raise EngineError(f"the worker's host {host!r} is unknown: {error.strerror or error}") from error


def check_worker(host: str, port: int) -> None:
    """Greet a worker the way llama.cpp does, so that a wrong address is an error rather than an abort.

    The greeting is RPC_CMD_HELLO of ggml/src/ggml-rpc/ggml-rpc.cpp, numbers little-endian:
    | 14, 1 byte | 24, 8 bytes | 24 zeros |, answered by | size, 8 bytes | major, minor, patch, 1 byte each | ... |.
    Raises EngineError.
    """
    where, answer = f"{host}:{port}", b""
    advice = f"start one there with `moe-gguf worker --port {port}`"
    try:
        with socket.create_connection((host, port), CONNECT_SECONDS) as connection:
            connection.sendall(bytes([HELLO]) + HELLO_BYTES.to_bytes(8, "little") + bytes(HELLO_BYTES))
            try:
                answer = _receive(connection, 11)
            except TimeoutError:
                raise EngineError(f"the worker at {where} is busy: it serves one client at a time") from None
    except OSError as error:
        raise EngineError(f"no worker answers at {where}: {error.strerror or error}; {advice}") from error
    if len(answer) < 11:
        raise EngineError(f"what answers at {where} is not a worker, or one of another version of llama.cpp")


def _receive(connection: socket.socket, n_bytes: int) -> bytes:
    received = b""
    while len(received) < n_bytes and (piece := connection.recv(n_bytes - len(received))):
        received += piece
    return received
