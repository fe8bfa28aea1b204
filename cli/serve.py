"""`moe-gguf serve`: an OpenAI-compatible server with a chat page."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from .llama_words import LlamaCommand
from .loading import load_request, loading_options
from .models import MODEL, catalogue_path
from .numbers import FiniteRange
from .sampling_options import build_sampling, n_predict_option, sampling_options
from .template_options import build_template, template_options
from .terminal import TERMINAL, verbosity


@click.command(cls=LlamaCommand)
@click.argument("model", type=MODEL, required=False)
@click.option(
    "--models-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Serve the GGUF files of this folder instead, each loaded when a request names it. Without MODEL and folder "
    "the catalogue's models are.",
)
@click.option(
    "--models-max", type=click.IntRange(min=1), default=1, show_default=True, help="Models that are loaded at once."
)
@click.option(
    "--sleep-idle-seconds",
    type=FiniteRange(min=0.1),
    help="Unload a model that nobody asked for so long.  [default: when room is needed]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port to listen at; 0 is a free one."
)
@click.option("--api-key", "api_keys", multiple=True, metavar="KEY", help="A key that clients must give; repeatable.")
@click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read keys from this file, one a line. The variable MOE_GGUF_API_KEY may hold one too.",
)
@click.option(
    "--path",
    "page",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Show the page of this folder at /, such as llama.cpp's web UI, in place of ours.",
)
@click.option(
    "--cors-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let pages of this origin ask, such as https://example.org; repeatable; * is all.",
)
@click.option(
    "-np",
    "--parallel",
    "parallel",
    type=click.IntRange(1, 128),
    default=4,
    show_default=True,
    help="Answers that are made at once; others wait.",
)
@click.option(
    "--queue",
    type=click.IntRange(0, 100_000),
    default=128,
    show_default=True,
    help="Requests that may wait; more are told to try again later.",
)
@click.option(
    "-cram",
    "--cache-ram",
    type=click.IntRange(min=-1),
    default=1024,
    show_default=True,
    metavar="MiB",
    help="Memory for what conversations that are idle left in the cache; 0 leaves it there, -1 is no limit.",
)
@click.option(
    "-kvu/-no-kvu",
    "--kv-unified/--no-kv-unified",
    "kv_unified",
    default=True,
    show_default=True,
    help="Let answers share one cache of -c tokens; else each of -np has its part of it, and a seed holds, whoever "
    "else is answered.",
)
@click.option(
    "-to",
    "--timeout",
    type=FiniteRange(min=1),
    default=600.0,
    show_default=True,
    help="Seconds after which an answer ends.",
)
@n_predict_option("Maximum tokens of an answer whose request names none; -1 is no limit.")
@template_options
@sampling_options
@loading_options
@verbosity
def command(
    model: str | None,
    models_dir: Path | None,
    models_max: int,
    sleep_idle_seconds: float | None,
    host: str,
    port: int,
    api_keys: tuple[str, ...],
    api_key_file: Path | None,
    page: Path | None,
    origins: tuple[str, ...],
    queue: int,
    cache_ram: int,
    kv_unified: bool,
    timeout: float,
    parallel: int,
    n_predict: int,
    **values: Any,
) -> None:
    """Serve MODEL, a GGUF file or a name of the catalogue, over HTTP: OpenAI's API, and a page to chat at /.

    One line on stderr says where, once it answers. Ctrl-C stops it when the answers in the making have ended.
    """
    from ..jobs.sources import resolve_gguf
    from ..serve import server
    from ..serve.guard import access
    from ..serve.scheduler import Limits
    from ..serve.service import ModelOptions
    from ..serve.shelves import shelf_of

    allowed = access(host, api_keys, api_key_file, origins)
    options = ModelOptions(
        load=replace(load_request(values), kv_unified=kv_unified),
        sampling=build_sampling(values),
        template=build_template(values),
        limits=Limits(parallel, queue, cache_ram * 2**20 if cache_ram >= 0 else sys.maxsize),
        n_predict=n_predict,
        seconds=timeout,
    )
    if model is not None and models_dir is not None:
        raise click.UsageError("give MODEL or --models-dir, not both")
    path = shelf = None
    if model is not None:
        path = resolve_gguf(model, catalogue_path())
    else:
        shelf = shelf_of(models_dir, catalogue_path(), models_max, sleep_idle_seconds or float("inf"))
    request = server.Request(path, host, port, allowed, shelf, options, page=page)
    server.run(request, TERMINAL, lambda address: click.echo(f"listening on {address}", err=True))
