"""Options of llama.cpp's programs that people type here: understood, or answered with ours, never half-parsed.

click would read `-sysf x`, where it does not know it, as `-s ysf`.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import click

from .terminal import say

# What means the same here under another name: words, and what they are replaced by. "" stands for the value.
RENAMED: dict[tuple[str, ...], tuple[str, ...]] = {
    ("-e",): ("--escape",),
    ("-nr",): ("--no-repack",),
    ("-lv", "--verbosity", "--log-verbosity"): ("-v",),
    ("--log-verbose",): ("-v",),
    ("--log-disable", "--no-perf", "--no-show-timings"): ("-q",),
}
# What is so already, or has no meaning here: said, and left out.
GRANTED: dict[tuple[str, ...], str] = {
    ("-cnv", "--conversation", "-i", "--interactive", "-if", "--interactive-first", "-ins"): (
        "moe-gguf chat is the conversation"
    ),
    ("-st", "--single-turn"): "one prompt is answered",
    ("--jinja",): "chat templates always are Jinja",
    ("-co", "--color"): "answers have no colours",
    ("--mmap",): "files are mapped unless --no-mmap is given",
    ("-kvo", "--kv-offload"): "the KV cache lies on the devices unless -nkvo is given",
    ("--warmup", "--no-warmup"): "nothing is warmed up",
    ("--simple-io", "--no-display-prompt", "--perf", "--show-timings"): "it is so anyway",
    (
        "--op-offload",
        "--no-host",
        "--log-prefix",
        "--log-timestamps",
        "--log-colors",
        "--offline",
    ): "it has no meaning here",
    ("--poll", "--poll-batch", "--prio", "--prio-batch", "-cram", "--cache-ram", "-ctxcp", "--ctx-checkpoints"): (
        "it has no meaning here"
    ),
}
# What is not here: what to do instead.
ANSWERED: dict[tuple[str, ...], str] = {
    ("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-mu", "--model-url", "-dr", "--docker-repo"): (
        "download the file first (hf download REPOSITORY FILE), and name it as MODEL"
    ),
    ("-hft", "--hf-token"): "hf auth login, then hf download REPOSITORY FILE",
    (
        "-cl",
        "--cache-list",
        "--list-devices",
    ): "moe-gguf devices lists devices; models are files, or names of models.toml",
    ("-no-cnv", "--no-conversation"): "moe-gguf generate completes a text as it is",
    ("-mli", "--multiline-input"): 'lines between """ are one message, and Alt-Enter breaks a line',
    ("--no-jinja", "--skip-chat-parsing"): "choose another template with --chat-template",
    (
        "-fit",
        "--fit-target",
        "-fitt",
        "--fit-ctx",
        "-fitc",
    ): "--fit and --no-fit take no value; -c and --vram say how much",
    ("-lm", "--load-mode", "-dio", "--direct-io"): "--no-mmap and --mlock say how the file is read",
    (
        "-C",
        "--cpu-mask",
        "-Cr",
        "--cpu-range",
        "--cpu-strict",
        "-Cb",
        "--cpu-mask-batch",
    ): "run it under taskset, or use -t",
    ("--keep", "--context-shift", "--no-context-shift", "--swa-full"): "chat itself leaves out the oldest messages",
    (
        "--prompt-cache",
        "--prompt-cache-all",
        "--prompt-cache-ro",
    ): "chat keeps what it read; /save and /load keep conversations",
    ("-bf", "--binary-file"): "-f reads a text file",
    ("-o", "--output", "--output-file", "--log-file"): "redirect the output: > FILE, 2> FILE",
    (
        "-sp",
        "--special",
        "--display-prompt",
        "--verbose-prompt",
    ): "--json shows every token of the prompt and of the answer",
    ("--lora", "--lora-scaled"): "merge the adapter first: name it in a recipe",
    ("--control-vector", "--control-vector-scaled"): "control vectors are not supported",
    (
        "--override-kv",
        "--check-tensors",
    ): "only --n-expert-used overrides what a file says; moe-gguf inspect shows the rest",
    ("-np", "--parallel", "-cb", "--cont-batching"): "bench -np measures several sequences",
    ("-md", "--model-draft", "--draft", "--draft-max", "--draft-min", "-ngld", "-devd", "-ctkd", "-ctvd"): (
        "speculative decoding is not supported"
    ),
    ("-mm", "--mmproj", "--image", "--audio", "--video"): "models read and write text only here",
    ("--adaptive-target", "--adaptive-decay", "--sampler-seq", "--sampling-seq", "-bs"): "--samplers names the chain",
    ("-sm tensor", "-ncffn", "--n-cpu-ffn"): "-ot REGEX=CPU keeps tensors on the CPU",
    (
        "--rope-scaling",
        "--rope-scale",
        "--rope-freq-base",
        "--rope-freq-scale",
        "--yarn-orig-ctx",
        "--yarn-ext-factor",
    ): ("the rotation is what the file says"),
}
SWITCHES, SWITCHED = ("-co", "--color"), ("on", "off", "auto")
WITH_A_VALUE = (
    "-lv",
    "--verbosity",
    "--log-verbosity",
    "--poll",
    "--poll-batch",
    "--prio",
    "--prio-batch",
    "-cram",
    "-ctxcp",
)
WITH_A_VALUE += ("--cache-ram", "--ctx-checkpoints", "--log-colors")


class LlamaCommand(click.Command):
    """A command that knows llama.cpp's words: `-m FILE` is its MODEL, other words are as in the tables above."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Replace and answer llama.cpp's words, then parse."""
        return super().parse_args(ctx, list(self._ours(ctx, args)))

    def _ours(self, ctx: click.Context, args: list[str]) -> Iterator[str]:
        takes_value = {
            word: not getattr(parameter, "is_flag", False) and not getattr(parameter, "count", False)
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option)
            for word in (*parameter.opts, *parameter.secondary_opts)
        }
        models: list[str] = []
        waiting = deque(args)
        while waiting:
            arg = waiting.popleft()
            word, equals, value = arg.partition("=")
            if arg == "--" or not arg.startswith("-") or arg == "-":
                yield arg
                if arg == "--":
                    break
            elif word in takes_value:
                yield arg
                if takes_value[word] and not equals and waiting:
                    yield waiting.popleft()
            elif word in ("-m", "--model"):
                if not equals and not waiting:
                    ctx.fail(f"{word} needs a file")
                models.append(value if equals else waiting.popleft())
            else:
                yield from self._answered(ctx, arg, waiting, takes_value)
        # behind all options, where none can take it for its value
        yield from models
        yield from waiting

    def _answered(self, ctx: click.Context, arg: str, waiting: deque[str], known: dict[str, bool]) -> Iterator[str]:
        word = arg.partition("=")[0]
        if replacement := found(RENAMED, word):
            drop_value(arg, waiting)
            yield from (each for each in replacement if each in known)
        elif answer := found(GRANTED, word):
            say(f"({word} changes nothing: {answer})")
            drop_value(arg, waiting)
        elif answer := found(ANSWERED, word):
            ctx.fail(f"{word} is llama.cpp's: {answer}")
        elif is_half_known(arg, known):
            ctx.fail(f"no such option: {word}")
        else:
            yield arg


def drop_value(arg: str, waiting: deque[str]) -> None:
    """Drop the value of a word that is left out: the rest of -lv 3, of -co on, but not of -co alone."""
    if "=" not in arg and waiting and (arg in WITH_A_VALUE or (arg in SWITCHES and waiting[0] in SWITCHED)):
        waiting.popleft()


def is_half_known(arg: str, known: dict[str, bool]) -> bool:
    """Tell whether click would take letters behind one dash for an option and its value: `-sysf` for `-s ysf`.

    A number right behind its option (-n32) and flags in one word (-qv) are what they seem.
    """
    if arg.startswith("--") or len(arg) < 3 or arg[:2] not in known:
        return False
    behind = arg[2:]
    if not known[arg[:2]]:
        return not all(f"-{letter}" in known and not known[f"-{letter}"] for letter in behind)
    return behind[0].isalpha()


def found(table: dict[tuple[str, ...], Any], word: str) -> Any:
    """Return what a table says of a word, None when it is not there."""
    return next((entry for words, entry in table.items() if word in words), None)
