"""From a model argument to a plan, whatever it stands for, and the check of the file that comes of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..formats.checkpoint import Checkpoint
from ..formats.errors import CheckpointError, OutputError, PlanError
from ..writer.partial import Output
from ..writer.plan import Plan
from .catalogued import state_catalogue
from .models import ModelSource, SourceKind
from .terminal import say, warn


@dataclass(frozen=True)
class Routers:
    """Where a recipe's routers come from: a `file`, else computed with the base as `base` says.

    With `zeros` nothing is computed: enough for a plan.
    """

    file: Path | None = None
    base: str = "bf16"
    zeros: bool = False


DEFAULT_ROUTERS = Routers()


@dataclass(frozen=True)
class Planned:
    """A plan, what to call it, where its outputs go by default, and where its source's tokenizer lies."""

    plan: Plan
    name: str
    folder: Path
    tokenizer: Path | None


def plan_of(source: ModelSource, pre_tokenizer: str | None = None, routers: Routers = DEFAULT_ROUTERS) -> Planned:
    """Plan the conversion of a checkpoint, a recipe or a hub model; its weights are not read yet.

    Raises MoeGgufError for what cannot be converted.
    """
    from ..convert.build_plan import build_plan

    if source.kind is SourceKind.GGUF:
        raise CheckpointError(f"{source.path}: is GGUF already; to change its types: moe-gguf quantize {source.path}")
    checkpoint = open_source(source, routers)
    plan = build_plan(checkpoint, pre_tokenizer=pre_tokenizer)
    if source.entry:
        plan = state_catalogue(plan, source.entry)
    return Planned(plan, checkpoint.name, source.output or Path(), checkpoint.folder)


def open_source(source: ModelSource, routers: Routers = DEFAULT_ROUTERS) -> Checkpoint:
    """Open what a source stands for as a checkpoint: files that are there, or a recipe in their place."""
    from ..formats.checkpoint import open_checkpoint

    if source.kind is SourceKind.CHECKPOINT and source.path:
        if routers.file:
            raise PlanError("--gates goes with a recipe; for a finished GGUF use moe-gguf regate")
        return open_checkpoint(source.path)
    from .recipes import open_hub, open_recipe_source

    if source.kind is SourceKind.HUB:
        return open_hub(source)
    return open_recipe_source(source, routers)


def check_finished(
    output: Output, paths: Sequence[Path], tokenizer: Path | None, load: bool = True, forgiving: bool = False
) -> None:
    """Read finished files back: their structure, and with `load` by llama.cpp: a decode, the tokens of a probe text.

    Where llama.cpp's graph does otherwise than the checkpoint asks, a warning says by how much. Raises OutputError
    when something is not as planned; if `forgiving`, what llama.cpp complains of is a warning.
    """
    from ..writer.readback import check_structure, check_with_gguf_reader

    check_structure(paths, output.entries)
    if not load:
        return
    check_with_gguf_reader(paths, output.entries)
    if len(paths) > 1:
        say("shards are checked for their structure; llama.cpp loads them by their final names only")
        return
    from gguf.constants import Keys
    from psutil import virtual_memory

    from ..convert.vocabulary import probe_text, probe_tokens
    from ..measure.graph_difference import describe_graph_difference
    from ..runner.verify import verify_gguf

    text = probe_text(output.fields[Keys.Tokenizer.LIST].value, output.fields[Keys.Tokenizer.TOKEN_TYPE].value)
    expected = probe_tokens(tokenizer, text) if tokenizer else None
    fits = output.n_bytes < virtual_memory().available / 2
    if not fits:
        say(f"{output.path} is more than half of the free memory: its tokens are compared, it is not decoded")
    if tokenizer and expected is None:
        warn("no reference for the tokenizer: its tokens were not compared")
    asks = Keys.LLM.EXPERT_WEIGHTS_NORM.format(arch=output.fields[Keys.General.ARCHITECTURE].value) in output.fields
    problems = verify_gguf(paths[0], text if expected is not None else None, expected, decode=fits)
    if problems and forgiving:
        warn(f"{output.path}: {'; '.join(problems)}")
    elif problems:
        raise OutputError(f"{output.path}: llama.cpp does not run it as it should: {'; '.join(problems)}")
    elif fits and asks and (difference := describe_graph_difference(paths[0])):
        warn(f"{output.path}: {difference}")
