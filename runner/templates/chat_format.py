"""How a model is talked to: its template, where its answers end, how it thinks; made once, used by every request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gguf.constants import Keys

from ...formats.errors import EngineError
from ...formats.llamacpp import llama
from ..model import Model, special_text, tokenize
from .endings import Endings, endings_of, is_special
from .message import Json, Message
from .render import Rendered, render
from .source import Template, choose_template
from .thinking import Tags, ThoughtStream, begins_thinking, tags_of
from .wants import THINKING_SWITCHES

# transformers gives a template every special token that the tokenizer names.
SPECIAL = {
    "bos_token": Keys.Tokenizer.BOS_ID,
    "eos_token": Keys.Tokenizer.EOS_ID,
    "unk_token": Keys.Tokenizer.UNK_ID,
    "sep_token": Keys.Tokenizer.SEP_ID,
    "pad_token": Keys.Tokenizer.PAD_ID,
    "mask_token": Keys.Tokenizer.MASK_ID,
}
REASONING_FORMATS = ("auto", "none", "deepseek", "deepseek-legacy")


@dataclass(frozen=True)
class TemplateOptions:
    """What a user says about the template, in llama.cpp's words.

    `chat_template` is a name or Jinja source, `chat_template_file` a file that holds it. `reasoning` None leaves it to
    the template whether to think. `reasoning_format`: "none" leaves thoughts in the answer's text, "auto" and
    "deepseek" take them out, "deepseek-legacy" does both.
    """

    chat_template: str | None = None
    chat_template_file: Path | None = None
    kwargs: Mapping[str, Json] = field(default_factory=dict)
    reasoning: bool | None = None
    reasoning_format: str = "auto"

    @property
    def values(self) -> dict[str, Json]:
        """What the template is given beside the messages."""
        switch = {} if self.reasoning is None else dict.fromkeys(THINKING_SWITCHES, self.reasoning)
        return switch | dict(self.kwargs)


@dataclass(frozen=True)
class ChatFormat:
    """How to talk to one model. Frozen and without state: any number of threads may use one."""

    model: Model
    template: Template
    tool_template: Template
    special: Mapping[str, str]
    endings: Endings
    tags: Tags | None
    options: TemplateOptions

    @property
    def separates_thoughts(self) -> bool:
        """Whether thoughts are told from what is said."""
        return self.tags is not None and self.options.reasoning_format != "none"

    @property
    def spelled(self) -> frozenset[int]:
        """Control tokens that are shown as text all the same: the tags of thoughts, which would vanish otherwise."""
        if self.tags is None or not self.separates_thoughts:
            return frozenset()
        tokens = [
            token
            for text in (self.tags.start, self.tags.end)
            for token in tokenize(self.model, text, add_special=False)
            if is_special(self.model, token)
        ]
        return frozenset(tokens)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Json] = (),
        values: Mapping[str, Json] | None = None,
        add_generation_prompt: bool = True,
    ) -> Rendered:
        """Return the prompt's text; `values` win over the options'. Raises EngineError; see `render`.

        Thoughts that a template begins although they are switched off are ended, as in llama.cpp.
        """
        template = self.tool_template if tools else self.template
        asked, set_up = values or {}, self.options.values
        values = {**set_up, **asked}
        rendered = render(template, messages, self.special, tools, values, add_generation_prompt)
        switches = asked if any(name in asked for name in THINKING_SWITCHES) else set_up
        is_off = any(switches.get(name) is False for name in THINKING_SWITCHES)
        if self.tags and is_off and add_generation_prompt and self.begins_thinking(rendered):
            return replace(rendered, text=rendered.text + self.tags.end)
        return rendered

    def tokens(self, rendered: Rendered) -> list[int]:
        """Return a prompt's tokens: begun as the file asks for, once, and not ended.

        A template's own bos and the tokenizer's are one; the eos that `add_eos_token` would put behind the prompt
        would end the answer before it begins.
        """
        return continued(self.model, rendered.text)

    def begins_thinking(self, rendered: Rendered) -> bool:
        """Tell whether an answer to this prompt begins inside of thoughts."""
        return self.tags is not None and begins_thinking(rendered.text, self.tags)

    def thoughts(self, rendered: Rendered) -> ThoughtStream:
        """Return what tells thoughts from the answer to this prompt."""
        if not self.separates_thoughts:
            return ThoughtStream(None)
        return ThoughtStream(self.tags, inside=self.begins_thinking(rendered))


def chat_format(model: Model, options: TemplateOptions | None = None) -> ChatFormat:
    """Choose a model's template and find out what there is to know about it. Raises EngineError."""
    options = options or TemplateOptions()
    wanted = template_text(options)
    metadata = model.file.metadata
    template = choose_template(metadata, model.path, wanted)
    special = special_tokens(model)
    return ChatFormat(
        model,
        template,
        choose_template(metadata, model.path, wanted, with_tools=True),
        special,
        endings_of(model, template, special),
        tags_of(template, special),
        options,
    )


def template_text(options: TemplateOptions) -> str | None:
    """Return what was given as the template: its text out of the file, a name, or source. Raises EngineError."""
    path = options.chat_template_file
    if path is None:
        return options.chat_template
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"{path}: the chat template cannot be read: {error}") from None
    if not text.strip():
        raise EngineError(f"{path}: an empty file is no chat template")
    return text


def special_tokens(model: Model) -> dict[str, str]:
    """Return the spellings of the special tokens that the file names, by the names that templates use."""
    return {name: text for name, key in SPECIAL.items() if (text := special_text(model, key))}


def continued(model: Model, text: str) -> list[int]:
    """Return the tokens of a text that is to be gone on with: one bos where the file asks for it, no eos behind."""
    bos, eos = (model.file.metadata.get(key) for key in (Keys.Tokenizer.BOS_ID, Keys.Tokenizer.EOS_ID))
    spelled = special_text(model, Keys.Tokenizer.BOS_ID)
    begun = bool(spelled) and text.startswith(spelled)
    tokens = tokenize(model, text, add_special=not begun)
    while begun and tokens[:2] == [bos, bos]:
        del tokens[0]
    if not begun and adds_eos(model) and tokens and tokens[-1] == eos:
        tokens.pop()
    return tokens


def adds_eos(model: Model) -> bool:
    """Tell whether the tokenizer puts the eos behind every text."""
    return bool(llama().llama_vocab_get_add_eos(model.vocab))
