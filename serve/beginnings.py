"""Messages in, the prompt that they become out; an answer that is there in part already is gone on with."""

from dataclasses import dataclass, replace

from ..runner.templates.message import Message
from ..runner.templates.render import Rendered
from ..runner.templates.thinking import Tags, ThoughtStream
from .errors import ApiError
from .requests import ChatRequest
from .service import Service
from .tools import Toolset


@dataclass(frozen=True)
class Beginning:
    """A prompt, the tags of thoughts if they are to be told from the answer, and whether it ends within thoughts."""

    rendered: Rendered
    tags: Tags | None = None
    is_thinking: bool = False

    def thoughts(self) -> ThoughtStream:
        """Return what tells thoughts from one answer to the prompt."""
        return ThoughtStream(self.tags, self.is_thinking and self.tags is not None)


def beginning(request: ChatRequest, service: Service, tools: Toolset) -> Beginning:
    """Return the prompt of a request. Raises ApiError and EngineError.

    An assistant's message at the end is gone on with, as llama-server does, unless the request says that it is whole.
    """
    chat, messages = service.chat, tools.messages
    begun = begun_answer(request, messages)
    add_prompt = begun is not None or request.add_generation_prompt is not False
    rendered = chat.render(messages[:-1] if begun else messages, tools.shown, request.chat_template_kwargs, add_prompt)
    if chat.tags and begun and begun.reasoning_content:  # thoughts that were ended, being off, hold these
        rendered = replace(rendered, text=rendered.text.removesuffix(chat.tags.end))
    thinks = chat.begins_thinking(rendered)
    tags = chat.tags if chat.separates_thoughts and request.reasoning_format != "none" else None
    if begun is None or not (begun.text or begun.reasoning_content):
        return Beginning(rendered, tags, thinks)
    text, thought = begun.text, begun.reasoning_content or ""
    if chat.tags and (thought or thinks):
        text = f"{'' if thinks else chat.tags.start}{thought}{chat.tags.end + text if text else ''}"
    is_thinking = not begun.text
    return Beginning(replace(rendered, text=rendered.text + text), tags if is_thinking else None, is_thinking)


def begun_answer(request: ChatRequest, messages: list[Message]) -> Message | None:
    """Return the message at the end that is to be gone on with. Raises ApiError for requests that make no sense."""
    if request.continue_final_message and request.add_generation_prompt:
        raise ApiError(400, "give add_generation_prompt or continue_final_message, not both", "continue_final_message")
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant" or last.tool_calls:
        if request.continue_final_message:
            raise ApiError(400, "the last message is no assistant's", "continue_final_message")
        return None
    if request.continue_final_message is None:
        is_whole = request.add_generation_prompt is not None
    else:
        is_whole = not request.continue_final_message
    if not is_whole and len(messages) > 1 and messages[-2].role == "assistant":
        raise ApiError(400, "two messages of the assistant at the end cannot both be gone on with", "messages")
    return None if is_whole else last
