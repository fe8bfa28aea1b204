"""`moe-gguf worker`: serves this machine's devices to another one through llama.cpp's RPC backend."""

from pathlib import Path

import click

from .loading import split_list
from .process import end_at_once, ended_status
from .terminal import TERMINAL, verbosity

DEFAULT_PORT = 50052


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on (0.0.0.0: all).")
@click.option("-p", "--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True, help="The port.")
@click.option("-t", "--threads", type=click.IntRange(min=1), help="Threads of the CPU  [default: physical cores]")
@click.option("-d", "--device", metavar="NAME,...", help="Serve these devices  [default: the GPUs, else the CPU]")
@click.option("--cache", type=click.Path(file_okay=False), help="Cache weights in this folder.")
@verbosity
def command(host: str, port: int, threads: int | None, device: str | None, cache: str | None) -> None:
    """Serve this machine's devices, so that another one can place parts of a model here.

    The other machine names this one with --rpc HOST:PORT. One machine is served at a time. Ctrl-C ends it.

    The protocol has no authentication and no encryption: whoever can reach the port can use, read and crash what
    runs here. Without --host only this machine can reach it.
    """
    from ..jobs import worker as job

    names = tuple(split_list(device)) if device else None
    try:
        job.run(job.Request(host, port, threads, names, Path(cache) if cache else None), TERMINAL)
    except KeyboardInterrupt as error:
        # llama.cpp computes on in a thread of its own, with what the interpreter's end would free
        end_at_once(ended_status(error), "interrupted")
