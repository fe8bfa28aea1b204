"""An answer's text in, its thoughts and what it says out, by the tags that a template puts around thoughts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...formats.errors import EngineError
from ..streaming import overlap
from .message import Json
from .source import Template

QUESTION, THOUGHT, ANSWER = "PROBE-QUESTION", "PROBE-THOUGHT", "PROBE-ANSWER"
TAG = r"<[^<>\s]+>|\[/?[A-Z]+\]"
BEFORE, BEHIND = re.compile(rf"({TAG})\s*$"), re.compile(rf"^\s*({TAG})")
# Templates that take thoughts in the content only: what they look for.
KNOWN = (
    ("<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"),
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)


@dataclass(frozen=True)
class Tags:
    """What stands before and behind thoughts."""

    start: str
    end: str


@dataclass(frozen=True)
class Heard:
    """What became certain of an answer: a piece of its thoughts, a piece of what it says."""

    thought: str = ""
    said: str = ""


def tags_of(template: Template, special: Mapping[str, str]) -> Tags | None:
    """Return the tags of a template, found by showing it an answer with reasoning; None when it knows no thoughts."""
    for start, end in KNOWN[:1]:
        if start in template.source and end.rpartition("<|channel|>")[2] in template.source:
            return Tags(start, end)
    before, behind = around_thoughts(template, special)
    start, end = BEFORE.search(before), BEHIND.search(behind)
    # <think> and </think>, [THINK] and [/THINK]; markers of other things stand before and behind thoughts too
    if start and end and f"{start[1][0]}/{start[1][1:]}" == end[1]:
        return Tags(start[1], end[1])
    return next((Tags(start, end) for start, end in KNOWN if end in template.source), None)


def around_thoughts(template: Template, special: Mapping[str, str]) -> tuple[str, str]:
    """Return what stands before an answer's reasoning, and between it and what is said; "" where it is not shown."""
    values: dict[str, Json] = {"bos_token": "", "eos_token": "", **special, "enable_thinking": True, "tools": None}
    answer = {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT, "thinking": THOUGHT}
    try:
        text = template.render([{"role": "user", "content": QUESTION}, answer], values)
    except EngineError:
        return "", ""
    before, thought, rest = text.partition(THOUGHT)
    behind, said, _ = rest.partition(ANSWER)
    return (before, behind) if thought and said else ("", "")


def begins_thinking(prompt: str, tags: Tags) -> bool:
    """Tell whether a prompt ends inside of thoughts, so that the answer begins with them."""
    return prompt.rstrip().endswith(tags.start)


class ThoughtStream:
    """Tells thoughts at the beginning of an answer from what is said after them, piece by piece."""

    def __init__(self, tags: Tags | None, inside: bool = False) -> None:
        """Begin before the thoughts, or `inside` of them; without tags all is said."""
        self.tags = tags
        self._state = "said" if tags is None else "thought" if inside else "start"
        self._held = ""
        self._fresh = True

    def push(self, text: str) -> Heard:
        """Take a piece of the answer and return what is certain now."""
        self._held += text
        thought = ""
        if self._state == "start":
            self._look_for_start()
        if self._state == "thought":
            thought = self._look_for_end()
        if self._state == "behind":
            self._held = self._held.lstrip()
            self._state = "said" if self._held else "behind"
        said = ""
        if self._state == "said":
            said, self._held = self._held, ""
        return Heard(thought, said)

    def flush(self) -> Heard:
        """Return what is held back when nothing more comes."""
        held, self._held = self._held, ""
        return Heard(thought=held) if self._state == "thought" else Heard(said=held)

    def _look_for_start(self) -> None:
        assert self.tags
        begun = self._held.lstrip()
        if begun.startswith(self.tags.start):
            self._state, self._held = "thought", begun.removeprefix(self.tags.start)
        elif not self.tags.start.startswith(begun):
            self._state = "said"

    def _look_for_end(self) -> str:
        assert self.tags
        if self._fresh:
            self._held = self._held.lstrip()
            self._fresh = not self._held
        thought, found, rest = self._held.partition(self.tags.end)
        if found:
            self._state, self._held = "behind", rest
            return thought
        keep = overlap(self._held, self.tags.end)
        ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return ready
