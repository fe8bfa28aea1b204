"""mergekit's options, as its users and LazyMergekit's notebooks type them: each is taken, or answered with ours."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

NOTES = "moe_gguf.mergekit"

# What is so anyway, or has nothing to change here: merging goes on, and says why.
FLAGS = {
    "--allow-crimes": "a mixture has no place for models of different architectures, so they are refused",
    "--copy-tokenizer": "the base's tokenizer is always copied",
    "--lazy-unpickle": "weights are always read row by row",
    "--low-cpu-memory": "weights are always read row by row",
    "--async-write": "merging writes as fast as the disk does",
    "--clone-tensors": "no tensor is shared between experts in the files that are written",
    "--trust-remote-code": "no model's own code is ever run",
    "--write-model-card": "a model card is always written",
    "--safe-serialization": "only safetensors are written",
    "--unsafe-truncate-embeddings": "the base's embeddings are taken whole",
    "--cuda": "merging copies rows and computes nothing on a GPU",
    "--gpu-rich": "merging copies rows and computes nothing on a GPU",
    "--multi-gpu": "merging copies rows and computes nothing on a GPU",
    "--read-to-gpu": "merging copies rows and computes nothing on a GPU",
    "--i-understand-this-is-not-useful-without-training": "the merge doctor says what it doubts, and goes on",
}
NEGATED = ("allow-crimes", "unsafe-truncate-embeddings", "cuda", "low-cpu-memory", "clone-tensors", "read-to-gpu")
NEGATED += ("trust-remote-code", "lazy-unpickle", "multi-gpu", "async-write")
FLAGS |= {f"--no-{name}": FLAGS[f"--{name}"] for name in NEGATED}
VALUES = {
    "--device": "merging copies rows and computes nothing on a GPU",
    "--num-threads": "merging is as fast as the disk with one",
    "-j": "merging is as fast as the disk with one",
    "--write-threads": "merging is as fast as the disk with one",
    "--lora-merge-cache": "adapters are folded in while rows stream by, and leave nothing to cache",
}
# What would change the result or leave something behind: bad usage, with what to do instead.
REFUSED_FLAGS = {
    "--no-copy-tokenizer": "the tokenizer is always copied; remove tokenizer* from the folder afterwards",
    "--no-write-model-card": "a model card is always written; remove README.md from the folder afterwards",
    "--no-safe-serialization": "only safetensors are written, which transformers reads as well",
    "--load-in-4bit": "use --gate-base q8_0, which runs the base in 8 bits for the hidden states",
    "--load-in-8bit": "use --gate-base q8_0, which runs the base in 8 bits for the hidden states",
}
REFUSED_VALUES = {
    "--random-seed": "write seed: N into the recipe",
    "--transformers-cache": "set HF_HOME to the folder of the hub's cache",
    "--lora-merge-dtype": "adapters are folded in in float32; write dtype: into the recipe for the merge's own",
}


def mergekit_options(command: Command) -> Command:
    """Let a command understand the options of mergekit-moe; they are not shown in its help."""
    for answers, is_flag, callback in (
        (FLAGS, True, _take),
        (VALUES, False, _take),
        (REFUSED_FLAGS, True, _refuse),
        (REFUSED_VALUES, False, _refuse),
    ):
        for name in answers:
            command = click.option(
                name,
                f"mergekit_{name.strip('-').replace('-', '_')}",
                is_flag=is_flag,
                default=False if is_flag else None,
                expose_value=False,
                hidden=True,
                callback=callback,
            )(command)
    return command


def mergekit_notes() -> list[str]:
    """Return why the options of mergekit that were given change nothing: one line for each."""
    return click.get_current_context().meta.get(NOTES, [])


def _take(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value not in (None, False):
        name = parameter.opts[0]
        ctx.meta.setdefault(NOTES, []).append(f"{name} changes nothing: {(FLAGS | VALUES)[name]}")


def _refuse(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value not in (None, False):
        name = parameter.opts[0]
        raise click.UsageError(f"{name} is mergekit's: {(REFUSED_FLAGS | REFUSED_VALUES)[name]}", ctx)
