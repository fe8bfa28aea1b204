"""From a model argument to a plan, and the check of the file that comes of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..formats.errors import Interrupted, OutputError
from ..writer.partial import Output
from ..writer.plan import Plan
from .catalogued import state_catalogue
from .listener import SILENT, Listener
from .opening import DEFAULT_GATES, GateRequest, Opened, open_source
from .sources import ModelSource


@dataclass(frozen=True)
class Planned:
    """A plan, what to call it, where its outputs go by default, and where its source's tokenizer lies.

    The plan of a recipe has zeros for routers: `ready` makes it the one to write.
    """

    plan: Plan
    name: str
    folder: Path
    tokenizer: Path | None
    opened: Opened | None = None

    def ready(self, plan: Plan, listener: Listener = SILENT) -> Plan:
        """Return `plan`, which may have other fields or types, with a source that has its routers."""
        if self.opened is None or self.opened.mixture is None:
            return plan
        return replace(plan, source=self.opened.with_gates(listener).source)


def plan_of(
    source: ModelSource,
    pre_tokenizer: str | None = None,
    gates: GateRequest = DEFAULT_GATES,
    listener: Listener = SILENT,
) -> Planned:
    """Plan the conversion of a checkpoint, a recipe or a hub model; its weights are not read yet.

    Raises MoeGgufError for what cannot be converted.
    """
    from ..convert.build_plan import build_plan

    opened = open_source(source, gates, listener)
    plan = build_plan(opened.checkpoint, pre_tokenizer=pre_tokenizer)
    if source.entry:
        plan = state_catalogue(plan, source.entry)
    checkpoint = opened.checkpoint
    return Planned(plan, checkpoint.name, source.output or Path(), checkpoint.folder, opened)


@contextmanager
def stoppable() -> Iterator[None]:
    """Say that nothing was written when Ctrl-C comes before the first byte; later ones are told by who writes."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted; no model was written") from None


def finished_check(
    tokenizer: Path | None, load: bool, forgiving: bool, listener: Listener
) -> Callable[[Output, Sequence[Path]], None]:
    """Return the check that `write` makes of finished files; see `check_finished`."""
    return lambda output, paths: check_finished(output, paths, tokenizer, load, forgiving, listener)


def check_finished(
    output: Output,
    paths: Sequence[Path],
    tokenizer: Path | None,
    load: bool = True,
    forgiving: bool = False,
    listener: Listener = SILENT,
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
        listener.say("shards are checked for their structure; llama.cpp loads them by their final names only")
        return
    from gguf.constants import Keys

    from ..convert.vocabulary import probe_text, probe_tokens
    from ..measure.graph_difference import describe_graph_difference
    from ..runner.limits import system_memory
    from ..runner.verify import verify_gguf

    text = probe_text(output.fields[Keys.Tokenizer.LIST].value, output.fields[Keys.Tokenizer.TOKEN_TYPE].value)
    expected = probe_tokens(tokenizer, text) if tokenizer else None
    fits = output.n_bytes < system_memory()[0] / 2
    if not fits:
        listener.say(f"{output.path} is more than half of the free memory: its tokens are compared, it is not decoded")
    if tokenizer and expected is None:
        listener.warn("no reference for the tokenizer: its tokens were not compared")
    asks = Keys.LLM.EXPERT_WEIGHTS_NORM.format(arch=output.fields[Keys.General.ARCHITECTURE].value) in output.fields
    problems = verify_gguf(paths[0], text if expected is not None else None, expected, decode=fits)
    if problems and forgiving:
        listener.warn(f"{output.path}: {'; '.join(problems)}")
    elif problems:
        raise OutputError(f"{output.path}: llama.cpp does not run it as it should: {'; '.join(problems)}")
    elif fits and asks and (difference := describe_graph_difference(paths[0])):
        listener.warn(f"{output.path}: {difference}")
