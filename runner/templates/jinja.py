"""Jinja source in, a compiled chat template out, with the globals and filters that Hugging Face's templates expect.

They are those of transformers (utils/chat_template_utils.py, _compile_jinja_template). Templates come from files that
nobody vouches for: they run in Jinja's sandbox, on copies, and cannot ask for more memory than a prompt needs.
"""

import json
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

from ...formats.errors import EngineError
from ...models.template_language import is_go_template

LARGEST_PRODUCT = 10_000_000


@lru_cache(maxsize=64)
def compiled(source: str, where: str) -> Any:
    """Compile a chat template. Raises EngineError that begins with `where` for one that is no Jinja."""
    if is_go_template(source):
        raise EngineError(
            f"{where}: the chat template is a Go template, as Ollama uses them, not a Jinja template; "
            "give the model's own with --chat-template-file, or a built-in one with --chat-template"
        )
    try:
        return environment().from_string(source)
    except Exception as error:
        raise EngineError(f"{where}: the chat template is broken: {one_line(error)}") from error


@cache
def environment() -> Any:
    """Return the sandbox; made once, and shared by threads as Jinja allows."""
    import jinja2
    from jinja2.ext import loopcontrols

    found = sandbox()(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, generation_tag()])

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    found.filters["tojson"] = tojson
    found.globals["raise_exception"] = raise_exception
    found.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    return found


@cache
def sandbox() -> Any:
    """Return the environment's class: Jinja's immutable sandbox, which refuses to multiply texts without end."""
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [len(each) if isinstance(each, (str, list, tuple)) else abs(each) for each in (left, right)]
            if operator == "**" and (sizes[0] > 1000 or sizes[1] > 1000):
                raise SecurityError("the template computes too large a power")
            repeats = any(isinstance(each, (str, list, tuple)) for each in (left, right))
            if repeats and sizes[0] * sizes[1] > LARGEST_PRODUCT:
                raise SecurityError("the template makes too long a text")
            return super().call_binop(context, operator, left, right)

    return Sandbox


def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False):
    """Return a value as JSON; unlike Jinja's own filter it does not escape HTML."""
    pair = tuple(separators) if separators else None
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)


@cache
def generation_tag() -> Any:
    """Return the extension that reads {% generation %}, which marks answers for training, as plain content."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class GenerationTag(Extension):
        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # a call block, as in transformers: what is set inside does not reach outside
            return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

        def _content(self, caller: Any) -> str:
            return caller()

    GenerationTag.tags = {"generation"}
    return GenerationTag


def one_line(error: BaseException | None) -> str:
    """Return what an exception says, in one line that steers no terminal."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
