"""Sampling options in, the next token out: llama.cpp's own samplers in the order of its `common` library."""

import ctypes
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..formats.errors import EngineError
from ..formats.llamacpp import c_text, listening, llama
from .gbnf import check_grammar
from .model import Model, complaining, end_tokens, first_reason, tokenize

MIROSTAT_M = 100
DRAWN = 2**32 - 1  # LLAMA_DEFAULT_SEED, or -1: llama.cpp would draw a seed and not tell it
SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
ALIASES = {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p"}
CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


@dataclass(frozen=True)
class SamplingOptions:
    """llama.cpp's sampling parameters, by its names and with its defaults (common/common.h).

    seed None, -1 or 2**32 - 1 draws one; temp 0 is greedy; top_k 0, top_p 1, min_p 0, typical_p 1, top_n_sigma -1,
    xtc_probability 0, dry_multiplier 0, repeat_penalty 1 and mirostat 0 switch their sampler off.
    `grammar` is GBNF, `samplers` llama.cpp's names of what the chain holds, in order. `own` names the fields that are
    the caller's choice where a file recommends others (see recommended.py); None means all.
    """

    seed: int | None = None
    temp: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    grammar: str | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    samplers: tuple[str, ...] = SAMPLERS
    own: frozenset[str] | None = None

    @property
    def has_seed(self) -> bool:
        """Whether a seed is given, and none is to be drawn."""
        return self.seed not in (None, -1, DRAWN)


class Sampler:
    """One sequence's sampler: the owner of a `llama_sampler` chain, and of a grammar when there is one."""

    def __init__(self, model: Model, options: SamplingOptions) -> None:
        """Build the chain. Raises EngineError for values that llama.cpp would abort on and for a broken grammar."""
        self.chain, self.grammar = None, None
        check_options(model, options)
        api = llama()
        self.seed = secrets.randbelow(DRAWN) if options.seed is None or not options.has_seed else options.seed
        self.grammar = grammar_sampler(model, options.grammar) if options.grammar else None
        settings = api.llama_sampler_chain_default_params()
        self.chain = api.llama_sampler_chain_init(settings)
        for link in chain_links(model, options, self.seed):
            api.llama_sampler_chain_add(self.chain, link)
        self._candidates = np.zeros(model.n_vocab if self.grammar else 0, CANDIDATE)

    def sample(self, context: Any, row: int) -> int:
        """Choose and accept the token after an output of the context's last batch.

        With a grammar the chain chooses first, and again among what the grammar allows when it did not fit:
        so does llama.cpp, which spares most tokens the cost of checking the whole vocabulary.
        """
        api = llama()
        if not self.grammar:
            return api.llama_sampler_sample(self.chain, context, row)
        logits = np.ctypeslib.as_array(api.llama_get_logits_ith(context, row), self._candidates.shape)
        token = self._apply(logits, restricted=False)
        if not self._allows(token):
            token = self._apply(logits, restricted=True)
        api.llama_sampler_accept(self.grammar, token)
        api.llama_sampler_accept(self.chain, token)
        return token

    def accept_prompt(self, tokens: Iterable[int]) -> None:
        """Let penalties know the prompt; a grammar is for the answer only."""
        accept, chain = llama().llama_sampler_accept, self.chain
        for token in tokens:
            accept(chain, token)

    def close(self) -> None:
        """Free the samplers."""
        for sampler in (self.chain, self.grammar):
            if sampler:
                llama().llama_sampler_free(sampler)
        self.chain = self.grammar = None

    def __del__(self) -> None:
        self.close()

    def _apply(self, logits: np.ndarray, restricted: bool) -> int:
        api, candidates = llama(), self._candidates
        candidates["id"] = np.arange(len(candidates), dtype=np.int32)
        candidates["logit"] = logits
        candidates["p"] = 0
        array = candidate_array(candidates)
        if restricted:
            api.llama_sampler_apply(self.grammar, ctypes.byref(array))
            if not np.isfinite(candidates["logit"]).any():
                raise EngineError("the grammar allows none of the model's tokens here; check its terminals")
        api.llama_sampler_apply(self.chain, ctypes.byref(array))
        return array.data[array.selected].id

    def _allows(self, token: int) -> bool:
        one = np.array([(token, 1.0, 0.0)], CANDIDATE)
        array = candidate_array(one)
        llama().llama_sampler_apply(self.grammar, ctypes.byref(array))
        return bool(np.isfinite(one["logit"][0]))


def candidate_array(candidates: np.ndarray) -> Any:
    """Return a `llama_token_data_array` over a numpy array, unsorted and with nothing selected."""
    api = llama()
    array = api.llama_token_data_array()
    array.data = ctypes.cast(candidates.ctypes.data, api.llama_token_data_p)
    array.size, array.selected, array.sorted = len(candidates), -1, False
    return array


def chain_links(model: Model, options: SamplingOptions, seed: int) -> Iterator[Any]:
    """Yield the samplers in the order of common_sampler_init (common/sampling.cpp)."""
    api, n_vocab = llama(), model.n_vocab
    bias = dict(options.logit_bias)
    if options.ignore_eos:
        bias |= dict.fromkeys(end_tokens(model), -np.inf)
    bias |= dict.fromkeys(suppressed_tokens(model), -np.inf)
    if bias:
        entries = (api.llama_logit_bias * len(bias))(*[api.llama_logit_bias(*entry) for entry in bias.items()])
        yield api.llama_sampler_init_logit_bias(n_vocab, len(bias), entries)
    if options.mirostat:
        tau, eta = options.mirostat_tau, options.mirostat_eta
        yield api.llama_sampler_init_temp(options.temp)
        if options.mirostat == 1:
            yield api.llama_sampler_init_mirostat(n_vocab, seed, tau, eta, MIROSTAT_M)
        else:
            yield api.llama_sampler_init_mirostat_v2(seed, tau, eta)
        return
    if is_plainly_greedy(options):
        names = [name for name in options.samplers if name in ("penalties", "dry")]
        yield from (sampler_link(model, options, seed, name) for name in names)
        yield api.llama_sampler_init_greedy()
        return
    yield from (sampler_link(model, options, seed, name) for name in options.samplers)
    yield api.llama_sampler_init_dist(seed)


def sampler_link(model: Model, options: SamplingOptions, seed: int, name: str) -> Any:
    """Return one sampler of the chain by llama.cpp's name."""
    api, keep = llama(), 0
    if name == "dry":
        return dry_sampler(model, options)
    make: dict[str, Callable[[], Any]] = {
        "penalties": lambda: api.llama_sampler_init_penalties(
            model.n_vocab,
            options.repeat_last_n,
            options.repeat_penalty,
            options.frequency_penalty,
            options.presence_penalty,
        ),
        "top_n_sigma": lambda: api.llama_sampler_init_top_n_sigma(options.top_n_sigma),
        "top_k": lambda: api.llama_sampler_init_top_k(options.top_k),
        "typ_p": lambda: api.llama_sampler_init_typical(options.typical_p, keep),
        "top_p": lambda: api.llama_sampler_init_top_p(options.top_p, keep),
        "min_p": lambda: api.llama_sampler_init_min_p(options.min_p, keep),
        "xtc": lambda: api.llama_sampler_init_xtc(options.xtc_probability, options.xtc_threshold, keep, seed),
        "temperature": lambda: api.llama_sampler_init_temp_ext(
            options.temp, options.dynatemp_range, options.dynatemp_exponent
        ),
    }
    return make[name]()


def dry_sampler(model: Model, options: SamplingOptions) -> Any:
    """Return the sampler that keeps passages from repeating."""
    breakers = [c_text(text, "--dry-sequence-breaker") for text in options.dry_sequence_breakers]
    return llama().llama_sampler_init_dry(
        model.vocab,
        options.dry_multiplier,
        options.dry_base,
        options.dry_allowed_length,
        options.dry_penalty_last_n,
        (ctypes.c_char_p * len(breakers))(*breakers),
        len(breakers),
    )


def sampler_name(name: str) -> str | None:
    """Return llama.cpp's own name of a sampler for any of its spellings; None for one that is not here."""
    given = name.strip().lower()
    plain = {each.replace("_", ""): each for each in SAMPLERS}
    return ALIASES.get(given) or plain.get(given.replace("_", "").replace("-", ""))


def is_plainly_greedy(options: SamplingOptions) -> bool:
    """Tell whether the best token always wins, so that the rest of the chain need not be asked."""
    return options.temp <= 0 and options.dynatemp_range <= 0 and options.xtc_probability <= 0 and options.typical_p >= 1


def suppressed_tokens(model: Model) -> list[int]:
    """Return the tokens that the file says must never be generated."""
    count = ctypes.c_int32()
    tokens = llama().llama_vocab_get_suppress_tokens(model.vocab, ctypes.byref(count))
    return [tokens[i] for i in range(count.value)]


def check_options(model: Model, options: SamplingOptions) -> None:
    """Refuse values that mean nothing, and those that make llama.cpp abort."""
    numbers = {field.name: getattr(options, field.name) for field in fields(options) if field.type is float}
    if broken := [name for name, value in numbers.items() if not np.isfinite(value)]:
        raise EngineError(f"{broken[0]} is {numbers[broken[0]]}; it must be a finite number")
    if options.seed is not None and not -1 <= options.seed <= DRAWN:
        raise EngineError(f"the seed {options.seed} does not fit into 32 bits; use 0 to {DRAWN - 1}, or -1 to draw one")
    if unknown := [name for name in options.samplers if name not in SAMPLERS]:
        raise EngineError(f"there is no sampler {unknown[0]!r}; known are {', '.join(SAMPLERS)}")
    if options.mirostat not in (0, 1, 2):
        raise EngineError(f"there is no Mirostat {options.mirostat}; use 0 (off), 1 or 2")
    if options.repeat_penalty <= 0:
        raise EngineError(f"a repeat penalty of {options.repeat_penalty} is not possible; 1 switches it off")
    if options.mirostat and options.temp <= 0:
        raise EngineError("Mirostat needs a temperature above 0")
    for token, bias in options.logit_bias:
        if np.isnan(bias) or bias == np.inf:
            raise EngineError(f"logit bias for token {token}: {bias} is not possible; -inf forbids a token")
        if not 0 <= token < model.n_vocab:
            raise EngineError(f"logit bias for token {token}: the vocabulary has {model.n_vocab} tokens")


def grammar_sampler(model: Model, grammar: str) -> Any:
    """Return llama.cpp's sampler for a GBNF grammar. Raises EngineError with the place of a fault (see gbnf.py)."""
    encoded = c_text(grammar, "the grammar")
    check_grammar(grammar, lambda text: len(tokenize(model, text, add_special=False)) == 1)
    complaints: list[str] = []
    with listening(complaining(complaints)):
        sampler = llama().llama_sampler_init_grammar(model.vocab, encoded, b"root")
    if not sampler:
        raise EngineError(f"the grammar is broken: {first_reason(complaints)}")
    return sampler
