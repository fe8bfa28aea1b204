"""`moe-gguf serve`: an OpenAI-compatible server with a chat page."""

from typing import Any

import click

from .llama_words import LlamaCommand
from .loading import load_request, loading_options
from .models import MODEL, catalogue_path
from .sampling_options import build_sampling, sampling_options
from .template_options import build_template, template_options
from .terminal import TERMINAL, verbosity


@click.command(cls=LlamaCommand)
@click.argument("model", type=MODEL, required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port to listen at; 0 is a free one."
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
    "-n",
    "--n-predict",
    "--predict",
    "n_predict",
    type=click.IntRange(min=-1),
    default=-1,
    show_default=True,
    help="Maximum tokens of an answer whose request names none; -1 is no limit.",
)
@template_options
@sampling_options
@loading_options
@verbosity
def command(
    model: str | None,
    host: str,
    port: int,
    parallel: int,
    n_predict: int,
    **values: Any,
) -> None:
    """Serve MODEL, a GGUF file or a name of the catalogue, over HTTP: OpenAI's API, and a page to chat at /.

    One line on stderr says where, once it answers. Ctrl-C stops it when the answers in the making have ended.
    """
    from ..jobs.sources import resolve_gguf
    from ..serve import server
    from ..serve.scheduler import Limits
    from ..serve.service import ModelOptions

    options = ModelOptions(
        load=load_request(values),
        sampling=build_sampling(values),
        template=build_template(values),
        limits=Limits(parallel),
        n_predict=n_predict,
    )
    request = server.Request(resolve_gguf(model, catalogue_path()), host, port, options)
    server.run(request, TERMINAL, lambda address: click.echo(f"listening on {address}", err=True))
