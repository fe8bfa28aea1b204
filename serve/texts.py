"""/tokenize, /detokenize and /apply-template: text to tokens and back, messages to a prompt's text."""

from typing import Any

from ..runner.model import Model, spell
from .beginnings import beginning
from .chat import messages_of
from .errors import ApiError
from .prompts import mixed, spelled
from .requests import ChatRequest, DetokenizeRequest, TokenizeRequest
from .service import Service
from .tools import toolset

Json = dict[str, Any]


def tokenized(request: TokenizeRequest, service: Service) -> Json:
    """Return the tokens of a text, with their pieces if they are wanted. Raises ApiError and EngineError."""
    from ..runner.model import tokenize

    content = request.content
    if isinstance(content, str):
        tokens = tokenize(service.model, content, request.add_special, request.parse_special)
    else:
        tokens = mixed(service.model, content, "content", request.add_special)
    if not request.with_pieces:
        return {"tokens": tokens}
    return {"tokens": [{"id": token, "piece": _piece(service.model, token)} for token in tokens]}


def _piece(model: Model, token: int) -> str | list[int]:
    data = spell(model, token, special=True)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def detokenized(request: DetokenizeRequest, service: Service) -> Json:
    """Return the text of tokens. Raises ApiError for one that is not in the vocabulary."""
    if outside := [token for token in request.tokens if token >= service.model.n_vocab]:
        raise ApiError(400, f"token {outside[0]} is not in the vocabulary of {service.model.n_vocab}", "tokens")
    return {"content": spelled(service.model, request.tokens)}


def counted(request: ChatRequest, service: Service) -> Json:
    """Return how many tokens the prompt has that messages become. Raises EngineError."""
    tools = toolset(request, messages_of(request), service.tool_format, service.model)
    return {"input_tokens": len(service.chat.tokens(beginning(request, service, tools).rendered))}


def templated(request: ChatRequest, service: Service) -> Json:
    """Return the text of the prompt that messages become. Raises EngineError."""
    tools = toolset(request, messages_of(request), service.tool_format, service.model)
    return {"prompt": beginning(request, service, tools).rendered.text}
