"""The calibration text that ships: prose in many languages, code, technical pages and chats; ours, Apache-2.0 as all.

Its pieces take turns, so that the first chunks hold some of everything. Chats go through the model's own template.
"""

import json
from pathlib import Path

from ..formats.errors import EngineError
from ..runner.model import Model
from ..runner.templates.chat_format import chat_format
from ..runner.templates.message import Message
from .chunks import CalibrationText

FOLDER = Path(__file__).parent / "calibration"
NAME = "moe-gguf calibration text"
KINDS = ("languages", "code", "technical")
PIECE = 1500


def shipped_text(model: Model) -> CalibrationText:
    """Return the text for a model."""
    kinds = [
        pieces((FOLDER / f"{name}.txt").read_text(encoding="utf-8")) for name in ("languages", "code", "technical")
    ]
    kinds.append(chats(model, json.loads((FOLDER / "chat.json").read_text(encoding="utf-8"))))
    return CalibrationText(NAME, "\n\n".join(in_turns(kinds)), special=True)


def pieces(text: str) -> list[str]:
    """Cut a text between paragraphs into pieces of about PIECE characters."""
    found: list[str] = []
    for paragraph in text.strip("\n").split("\n\n"):
        if found and len(found[-1]) + len(paragraph) < PIECE:
            found[-1] += "\n\n" + paragraph
        else:
            found.append(paragraph)
    return found


def chats(model: Model, turns: list[list[dict[str, str]]]) -> list[str]:
    """Return chats as a model's template spells them; as plain lines where it has none."""
    spelled = [[Message(turn["role"], turn["content"]) for turn in chat] for chat in turns]
    try:
        form = chat_format(model)
        return [form.render(chat, add_generation_prompt=False).text for chat in spelled]
    except EngineError:
        return ["\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in chat) for chat in spelled]


def in_turns(kinds: list[list[str]]) -> list[str]:
    """Return the pieces of all kinds in an order in which each kind is spread evenly."""
    placed = [((number + 0.5) / len(kind), piece) for kind in kinds for number, piece in enumerate(kind)]
    return [piece for _, piece in sorted(placed, key=lambda item: item[0])]
