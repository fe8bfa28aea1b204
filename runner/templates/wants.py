"""What a template wants, found out by rendering probe messages and looking at what comes out.

llama.cpp does the same (common/jinja/caps.cpp), by recording what its interpreter touches; here only the text counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...formats.errors import EngineError
from .message import Json
from .source import Template

TEXT, SYSTEM, ANSWER, THOUGHT = "PROBE-TEXT", "PROBE-SYSTEM", "PROBE-ANSWER", "PROBE-THOUGHT"
TOOL, ARGUMENT, RESULT = "probe_tool", "PROBE-ARGUMENT", "PROBE-RESULT"
# The names under which templates are told whether to think; the first is what most of them read.
THINKING_SWITCHES = ("enable_thinking", "thinking")


@dataclass(frozen=True)
class Wants:
    """What a template makes of messages.

    `strings` and `parts`: contents that it shows when given as text and as a list of parts; `thinking` the name of the
    switch that it obeys; `keeps_reasoning`: it shows the reasoning of an answer that is not the last one's.
    """

    strings: bool
    parts: bool
    system: bool
    tools: bool
    tool_calls: bool
    object_arguments: bool
    tool_results: bool
    thinking: str | None
    keeps_reasoning: bool


@lru_cache(maxsize=64)
def wants_of(template: Template) -> Wants:
    """Try a template out; about a dozen short renderings."""
    probe = Probe(template)
    plain = probe({"role": "user", "content": TEXT})
    parted = probe({"role": "user", "content": [{"type": "text", "text": TEXT}]})
    parts = TEXT in parted and "'text'" not in parted and '"text"' not in parted
    strings = TEXT in plain
    content = (lambda text: text) if strings or not parts else (lambda text: [{"type": "text", "text": text}])
    question = {"role": "user", "content": content(TEXT)}
    answer = {"role": "assistant", "content": content(ANSWER)}
    thought = answer | {"reasoning_content": THOUGHT, "thinking": THOUGHT}
    call = _call({"probe_argument": ARGUMENT})
    with_object = probe(question, call, tools=[TOOL_DEFINITION])
    with_string = probe(question, _call('{"probe_argument": "PROBE-ARGUMENT"}'), tools=[TOOL_DEFINITION])
    as_object = ARGUMENT in with_object and "{'probe_argument': 'PROBE" not in with_object
    result = {"role": "tool", "name": TOOL, "tool_call_id": "call00001", "content": content(RESULT)}
    called = call if as_object else _call('{"probe_argument": "PROBE-ARGUMENT"}')
    return Wants(
        strings=strings,
        parts=parts,
        system=SYSTEM in probe({"role": "system", "content": content(SYSTEM)}, question),
        tools=TOOL in probe(question, tools=[TOOL_DEFINITION]),
        tool_calls=as_object or ARGUMENT in with_string,
        object_arguments=as_object,
        tool_results=RESULT in probe(question, called, result, tools=[TOOL_DEFINITION]),
        thinking=next(
            (name for name in THINKING_SWITCHES if len({probe(question, {name: on}) for on in (True, False)}) > 1), None
        ),
        keeps_reasoning=THOUGHT in probe(question, thought, question),
    )


class Probe:
    """Renders messages; "" for what the template refuses."""

    def __init__(self, template: Template) -> None:
        """Probe this template."""
        self.template = template

    def __call__(self, *messages: Mapping[str, Json], tools: Sequence[Json] | None = None) -> str:
        """Return the text. A mapping without a role is taken as values for the template."""
        values = {"bos_token": "", "eos_token": "", "add_generation_prompt": True, "tools": tools, "documents": None}
        for extra in messages:
            values |= {} if "role" in extra else extra
        try:
            return self.template.render([dict(each) for each in messages if "role" in each], values)
        except EngineError:
            return ""


TOOL_DEFINITION: Json = {
    "type": "function",
    "function": {
        "name": TOOL,
        "description": "A tool.",
        "parameters": {
            "type": "object",
            "properties": {"probe_argument": {"type": "string", "description": "An argument."}},
            "required": ["probe_argument"],
        },
    },
}


def _call(arguments: Json) -> dict[str, Json]:
    function = {"name": TOOL, "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call00001", "type": "function", "function": function}],
    }
