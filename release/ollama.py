"""What Ollama needs: a chat template comes in; Go's template, a system prompt, parameters, a Modelfile go out.

The Hub hands `template`, `system` and `params` of a repository to `ollama run hf.co/USER/REPO:TYPE`. A Jinja template
is taken apart by rendering conversations; what comes out is put together again and compared with Jinja's rendering of
other conversations. A template that is more than prefixes and suffixes of messages is left to Ollama.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .chat_template import Message, rendered, special_of

if TYPE_CHECKING:
    from ..runner.templates.source import Template

SYSTEM, USER, ANSWER, NEXT = "PROBE-SYSTEM", "PROBE-USER", "PROBE-ANSWER", "PROBE-NEXT"
# Ollama's names of what GGUF's general.sampling.* recommends.
SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
    "penalty_last_n": "repeat_last_n",
}
Render = Callable[[Sequence[Message]], str | None]


@dataclass(frozen=True)
class Frame:
    """What stands around a message: a text before it, a text behind it."""

    before: str
    behind: str


@dataclass(frozen=True)
class Frames:
    """A template taken apart: a frame for each role, what begins an answer, the system prompt where none is given.

    `system` None: there is no role for it; it goes before the first question.
    """

    user: Frame
    assistant: Frame
    system: Frame | None
    default: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """All texts of the template itself."""
        frames = [frame for frame in (self.user, self.assistant, self.system) if frame]
        return tuple(part for frame in frames for part in (frame.before, frame.behind))

    def text(self, messages: Sequence[Message]) -> str:
        """Return what the Go template below makes of messages."""
        if self.default is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default}, *messages]
        frames = {"user": self.user, "assistant": self.assistant, "system": self.system}
        parts, held = [], ""
        for message in messages:
            frame = frames[message["role"]]
            if frame is None:
                held = message["content"] + "\n\n"
                continue
            parts.append(frame.before + held + message["content"] + frame.behind)
            held = ""
        return "".join(parts) + self.assistant.before

    def go(self) -> str:
        """Return the template in Go's language, all in one line but for the texts' own line breaks."""
        system = ""
        first = "{{ if and $.System (le $i 1) }}{{ $.System }}\n\n{{ end }}" if self.system is None else ""
        if self.system is not None:
            system = (
                f'{{{{ if eq .Role "system" }}}}{self.system.before}{{{{ .Content }}}}{self.system.behind}{{{{ end }}}}'
            )
        return (
            "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            f"{system}"
            f'{{{{ if eq .Role "user" }}}}{self.user.before}{first}{{{{ .Content }}}}{self.user.behind}'
            f"{{{{ if $last }}}}{self.assistant.before}{{{{ end }}}}{{{{ end }}}}"
            f'{{{{ if eq .Role "assistant" }}}}{self.assistant.before}{{{{ .Content }}}}'
            f"{{{{ if not $last }}}}{self.assistant.behind}{{{{ end }}}}{{{{ end }}}}"
            "{{ end }}"
        )


@dataclass(frozen=True)
class Ollama:
    """The files: Go's template (None where Ollama is to use the GGUF's own), system prompt, parameters."""

    template: str | None
    system: str | None
    params: Mapping[str, Any]

    def files(self) -> dict[str, str]:
        """Return the Hub's three files, by name; those without content are left out."""
        found = {"template": self.template, "system": self.system}
        if self.params:
            found["params"] = json.dumps(self.params, indent=2, ensure_ascii=False) + "\n"
        return {name: text for name, text in found.items() if text}

    def modelfile(self, name: str) -> str:
        """Return the Modelfile of one GGUF file beside it."""
        lines = [f"FROM ./{name}"]
        if self.template:
            lines.append(f'TEMPLATE """{self.template}"""')
        if self.system:
            lines.append(f'SYSTEM """{self.system}"""')
        for key, value in self.params.items():
            for one in value if isinstance(value, list) else [value]:
                lines.append(f"PARAMETER {key} {json.dumps(one, ensure_ascii=False)}")
        return "\n".join(lines) + "\n"


def ollama_files(template: "Template | None", metadata: Mapping[str, Any]) -> Ollama:
    """Return what Ollama needs for the model with this metadata."""
    frames = take_apart(template, metadata) if template else None
    params: dict[str, Any] = {}
    if frames and (stop := frames.assistant.behind.strip()):
        params["stop"] = [stop.split("\n")[0]]
    for key, name in SAMPLING.items():
        value = metadata.get(f"general.sampling.{key}")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            params[name] = float(f"{value:.6g}") if isinstance(value, float) else value
    return Ollama(frames.go() if frames else None, frames.default if frames else None, params)


def default_system(template: "Template", metadata: Mapping[str, Any]) -> str | None:
    """Return the system prompt that a template adds where a conversation has none."""
    frames = take_apart(template, metadata)
    return frames.default if frames else None


def take_apart(template: "Template", metadata: Mapping[str, Any]) -> Frames | None:
    """Return the frames of a template that has nothing else; None for any other, and for one with a date or braces."""
    # Ollama begins with bos by itself.
    special = {**special_of(metadata), "bos_token": ""}

    def render(messages: Sequence[Message]) -> str | None:
        return rendered(template, messages, special)

    for guess in (_with_system(render), _without_system(render)):
        if (
            guess
            and not any(sign in part for part in guess.parts for sign in ("{{", "{date}"))
            and _holds(guess, render)
        ):
            return guess
    return None


def conversation(*contents: str) -> list[Message]:
    """Return messages of a user and an assistant by turns; a first one that is SYSTEM is the system's."""
    start = 1 if contents and contents[0] == SYSTEM else 0
    roles = ["system"] * start + ["user" if i % 2 == 0 else "assistant" for i in range(len(contents) - start)]
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]


def _with_system(render: Render) -> Frames | None:
    """Take apart a template with a role for the system. Where one message ends and the next begins is a convention."""
    text, alone = render(conversation(SYSTEM, USER, ANSWER, NEXT)), render(conversation(USER, ANSWER, NEXT))
    parts = _between(text, (SYSTEM, USER, ANSWER, NEXT)) if text else None
    without = _between(alone, (USER, ANSWER, NEXT)) if alone else None
    if parts is None or without is None:
        return None
    before_system, system_user, user_answer, answer_user, _ = parts
    before_user, default = without[0], None
    if not (system_user.endswith(before_user) and answer_user.endswith(before_user)):
        if not (before_user.startswith(before_system) and before_user.endswith(system_user)):
            return None
        default = before_user[len(before_system) : len(before_user) - len(system_user)]
        if not default:  # an empty system message is none to Ollama
            return None
        shared = _common_ending(system_user, answer_user)
        before_user = shared.partition("\n")[2] or shared
    return Frames(
        Frame(before_user, ""),
        Frame(user_answer, answer_user.removesuffix(before_user)),
        Frame(before_system, system_user.removesuffix(before_user)),
        default,
    )


def _without_system(render: Render) -> Frames | None:
    """Take apart a template without such a role."""
    alone = render(conversation(USER, ANSWER, NEXT))
    without = _between(alone, (USER, ANSWER, NEXT)) if alone else None
    if without is None or not without[2].endswith(without[0]):
        return None
    before_user, user_answer, answer_user, _ = without
    return Frames(Frame(before_user, ""), Frame(user_answer, answer_user.removesuffix(before_user)), None)


def _holds(frames: Frames, render: Render) -> bool:
    """Tell whether the frames make of conversations what the template makes of them."""
    tries = [conversation(*words) for words in (("one",), ("one", "two", "three"), ("a", "b", "c", "d", "e"))]
    if frames.system is not None:
        tries += [[{"role": "system", "content": "Be brief."}, *messages] for messages in list(tries)]
    return all(frames.text(messages) == render(messages) for messages in tries)


def _common_ending(one: str, other: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(one[::-1], other[::-1], strict=False)) if a != b), None)
    shorter = min(one, other, key=len)
    return shorter if length is None else shorter[len(shorter) - length :]


def _between(text: str, markers: Sequence[str]) -> list[str] | None:
    parts = []
    for marker in markers:
        part, found, text = text.partition(marker)
        if not found:
            return None
        parts.append(part)
    return [*parts, text]
