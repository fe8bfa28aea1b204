"""lm-evaluation-harness asks, our engine answers: a `TemplateLM` of the harness over a loaded model.

Imported only where the extra `eval` is installed. Texts become tokens, are cut and count as greedy as in the
harness's own `hf` model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ..formats.errors import EngineError
from ..formats.llamacpp import llama
from ..runner.engine import Engine, Feed, shared_prefix
from ..runner.generation import Generation, advance, begin
from ..runner.interrupt import interruptible
from ..runner.model import tokenize
from ..runner.sampling import SamplingOptions
from ..runner.templates.chat_format import chat_format
from ..runner.templates.message import Message
from .likelihood import BATCH_TOKENS, score, text_of

N_SEQ = 64
N_PREDICT = 256


class EngineModel(TemplateLM):
    """A model of the harness; `longest` is the most tokens of a text, `on_done` hears how many more requests
    are done.
    """

    def __init__(self, engine: Engine, on_done: Callable[[int], object] = lambda _: None) -> None:
        """Take an engine whose context has room for its longest text and a batch of others."""
        super().__init__()
        self.engine, self.on_done = engine, on_done
        self.longest = engine.n_ctx - BATCH_TOKENS
        if self.longest < 16:
            raise EngineError(f"a context of {engine.n_ctx} tokens is too small; use a larger -c/--ctx-size")

    @property
    def max_length(self) -> int:
        """The most tokens of a text."""
        return self.longest

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(llama().llama_vocab_eos(self.engine.model.vocab))

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: bos, or where there is none, eos."""
        bos = int(llama().llama_vocab_bos(self.engine.model.vocab))
        return bos if bos >= 0 else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's cache of requests."""
        return self.engine.model.path.stem

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the tokens of a text, with bos where the model's file asks for it and the text has none yet."""
        tokens = tokenize(self.engine.model, string, add_special=add_special_tokens is not False)
        while len(tokens) > 1 and tokens[0] == tokens[1] == self.prefix_token_id:
            del tokens[0]
        eos = self.eot_token_id
        ends = bool(llama().llama_vocab_get_add_eos(self.engine.model.vocab))
        return tokens[:-1] if ends and tokens and tokens[-1] == eos else tokens

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return messages as the template of the model's file writes them; the last answer is left open on request."""
        messages = [Message(message["role"], message["content"]) for message in chat_history]
        rendered = chat_format(self.engine.model).render(messages, add_generation_prompt=add_generation_prompt).text
        last = chat_history[-1]["content"]
        return rendered if add_generation_prompt else rendered[: rendered.rindex(last) + len(last)]

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the file's template."""
        return str(self.engine.model.file.metadata.get("tokenizer.chat_template", ""))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        texts = [text_of(context, continuation, self.longest) for _, context, continuation in requests]
        scores = []
        with interruptible(self.engine):
            scores = score(self.engine, texts, self.on_done)
        return [(one.logprob, one.is_greedy) for one in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log probability of whole texts, cut into windows as the harness cuts them."""
        totals = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.longest,
                context_len=1,
            )
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            totals.append(sum(logprob for logprob, _ in self._loglikelihood_tokens(pairs)))
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes after each context, up to a stop; several at a time, in one batch."""
        answers = [self._asked(*request.args) for request in requests]
        with interruptible(self.engine):
            self._write(answers)
        return ["".join(answer.pieces) for answer in answers]

    def _asked(self, context: str, options: dict[str, Any]) -> "Answer":
        wanted: Any = normalize_gen_kwargs(options, N_PREDICT)
        n_predict, is_drawn = wanted["max_gen_toks"], wanted["do_sample"]
        if n_predict >= self.longest:
            raise EngineError(
                f"a task wants answers of {n_predict} tokens, the context has {self.longest}; use a larger "
                "-c/--ctx-size"
            )
        sampling = SamplingOptions(
            temp=float(wanted.get("temperature") or 1.0) if is_drawn else 0.0,
            top_k=int(wanted.get("top_k", 0)),
            top_p=float(wanted.get("top_p", 1.0)),
            min_p=float(wanted.get("min_p", 0.0)),
            seed=0,
        )
        prompt = self.tok_encode(context)[-(self.longest - n_predict) :]
        return Answer(prompt, tuple(stop for stop in wanted["until"] if stop), n_predict, sampling)

    def _write(self, answers: "list[Answer]") -> None:
        """Write all answers: sequence 0 holds what all prompts begin with, each other one the answer in its slot."""
        engine = self.engine
        waiting = sorted(answers, key=lambda answer: -len(answer.prompt))
        prompts = sorted(answer.prompt[:-1] for answer in answers)
        stem = prompts[0][: shared_prefix(prompts[0], prompts[-1])] if engine.model.can_rewind else []
        held = engine.reuse(0, [*stem, -1])
        if stem[held:]:
            engine.step([Feed(0, stem[held:])])
        running: dict[int, tuple[Answer, Generation]] = {}
        while waiting or running:
            room = engine.n_ctx - len(stem) - sum(answer.n_tokens for answer, _ in running.values())
            free = [slot for slot in range(1, len(engine.cached)) if slot not in running]
            while waiting and free and waiting[0].n_tokens < room:
                answer, slot = waiting.pop(0), free.pop(0)
                room -= answer.n_tokens
                engine.copy(0, [slot])
                running[slot] = answer, answer.begin(engine, slot)
            for (answer, _), piece in zip(
                running.values(), advance(engine, [generation for _, generation in running.values()]), strict=True
            ):
                answer.pieces.append(piece.text)
            for slot in [slot for slot, (_, generation) in running.items() if generation.finish]:
                del running[slot]
                engine.forget(slot)
                self.on_done(1)
        engine.forget(0)


@dataclass
class Answer:
    """What is to be continued, and how; `pieces` is what the model wrote so far."""

    prompt: list[int]
    stops: tuple[str, ...]
    n_predict: int
    sampling: SamplingOptions
    pieces: list[str] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        """The most places in the cache that it takes."""
        return len(self.prompt) + self.n_predict

    def begin(self, engine: Engine, sequence: int) -> Generation:
        """Begin to write in a sequence."""
        return begin(engine, self.prompt, self.sampling, sequence=sequence, n_predict=self.n_predict, stops=self.stops)
