"""Tokens of one or several sequences in, the next token of each out: a context over a loaded model and its cache.

`step` decodes a list of sequences in one batch; everything that generates text stands on it. What is made anew for
every token is a named tuple and a few scalars: behind a decode the processor's caches are cold, and Python that takes
20 us when it is warm takes 200.

Long because one owner keeps books of one context, and they must agree with llama.cpp's.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..formats.errors import EngineError
from ..formats.llamacpp import listening, llama
from .interrupt import Cancelled, held_interrupts
from .load_options import LoadOptions
from .load_parameters import context_parameters
from .model import Model, complaining, first_reason
from .placing.cache_room import check_cache_room
from .sampling import Sampler

ABORTED, NO_ROOM = 2, 1


class ContextFull(EngineError):
    """The cache has no room for a batch; without other sequences it may."""


class Feed(NamedTuple):
    """Tokens to append to a sequence; with a sampler, the token after the last of them is chosen.

    n_logprobs asks for the chosen token's log probability and those of that many likeliest tokens.
    """

    sequence: int
    tokens: Sequence[int]
    sampler: Sampler | None = None
    n_logprobs: int | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its natural log probability before sampling, and the likeliest ones at its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Choice(NamedTuple):
    """The token chosen for a feed."""

    token: int
    logprob: TokenLogprob | None = None


class Engine:
    """One context: the only owner of a `llama_context`, of its batch and of what its cache holds.

    Several engines can stand on one model, each used by one thread at a time; `cancel` may be called from any.
    """

    def __init__(self, model: Model, options: LoadOptions, on_eval: Any = None) -> None:
        """Make the context; `on_eval` is a `cb_eval` callback, or addresses of one in machine code and of its data.

        Raises EngineError when it does not fit.
        """
        api = llama()
        self.model = model
        if api.llama_model_has_encoder(model.pointer) or not api.llama_model_has_decoder(model.pointer):
            raise EngineError(f"{model.path}: a model with an encoder; only decoders can be run")
        check_cache_room(model.file, options)
        parameters = context_parameters(options, model.n_ctx_train)
        self._cancel = ctypes.create_string_buffer(1)
        parameters.abort_callback = nonzero_callback()
        parameters.abort_callback_data = ctypes.addressof(self._cancel)
        if isinstance(on_eval, tuple):
            parameters.cb_eval = api.ggml_backend_sched_eval_callback(on_eval[0])
            parameters.cb_eval_user_data = on_eval[1]
        elif on_eval is not None:
            parameters.cb_eval = on_eval
        self._on_eval = on_eval
        complaints: list[str] = []
        self.pointer = None
        try:
            with held_interrupts(), listening(complaining(complaints)):
                self.pointer = api.llama_init_from_model(model.pointer, parameters)
        except BaseException:
            self.close()
            raise
        if not self.pointer:
            raise EngineError(
                f"{model.path}: no context of {parameters.n_ctx} tokens can be made: {first_reason(complaints)}; "
                "try a smaller -c/--ctx-size"
            )
        self.memory = api.llama_get_memory(self.pointer)
        if not self.memory:
            self.close()
            raise EngineError(f"{model.path}: a model of the kind {model.file.architecture!r} cannot generate text")
        self.n_ctx = int(api.llama_n_ctx(self.pointer))
        self.n_ctx_seq = int(api.llama_n_ctx_seq(self.pointer))
        self.kv_unified = options.kv_unified
        self.n_batch = int(api.llama_n_batch(self.pointer))
        self.n_ubatch = int(api.llama_n_ubatch(self.pointer))
        self.n_threads = int(parameters.n_threads)
        self.cached: list[list[int]] = [[] for _ in range(options.n_seq_max)]
        self._batch = Batch(self.n_batch, options.n_seq_max)

    def step(self, feeds: Sequence[Feed]) -> list["Choice | None"]:
        """Decode all tokens of all feeds in as few batches as fit; return what was chosen for each feed.

        None for a feed without a sampler. Raises Cancelled after `cancel`, and EngineError when the context is
        full or llama.cpp fails; the sequences then hold what was decoded until then.
        """
        chosen: list[Choice | None] = [None] * len(feeds)
        for number, choice in self.choices(feeds):
            chosen[number] = choice
        return chosen

    def choices(self, feeds: Sequence[Feed]) -> Iterator[tuple[int, "Choice"]]:
        """Do the work of `step` while being iterated: yield the number of a feed and its choice once there is one."""
        for parts in batches(feeds, self.n_batch):
            rows = self.decode(parts)
            done = [(part, row) for part, row in zip(parts, rows, strict=True) if part.sampler is not None]
            yield from [(part.feed, self.choose(part, row)) for part, row in done]

    def decode(self, parts: Sequence["Part"]) -> list[int]:
        """Decode parts of at most n_batch tokens in one batch; return the row of each part's last token, for `choose`.

        Raises Cancelled, ContextFull, and EngineError when llama.cpp fails; the sequences then hold what was decoded.
        """
        rows = self._batch.fill(parts, self.cached)
        self._decode(parts)
        return rows

    def decode_all(self, sequence: int, tokens: Sequence[int]) -> np.ndarray:
        """Append at most n_batch tokens; return the logits after each [tokens, n_vocab], a view until the next step."""
        part = Part(0, sequence, tokens, None, None)
        self._batch.fill([part], self.cached)
        self._batch.wanted[: len(tokens)] = 1
        self._decode([part])
        return np.ctypeslib.as_array(llama().llama_get_logits(self.pointer), (len(tokens), self.model.n_vocab))

    def decode_marked(self, parts: Sequence[tuple[int, Sequence[int]]], marked: np.ndarray) -> np.ndarray:
        """Append tokens to sequences, (sequence, tokens) each, in one batch; see `decode_shared`."""
        return self.decode_shared([Shared(sequence, 1, tokens) for sequence, tokens in parts], marked)

    def decode_shared(self, parts: Sequence["Shared"], marked: np.ndarray) -> np.ndarray:
        """Append tokens that sequences share, all parts in one batch of at most n_batch tokens.

        A part goes behind what earlier parts add to its sequences. `marked` is bool [tokens of all parts]: the logits
        after those are returned, float32 [marked, n_vocab], a view until the next step. Raises what `step` raises.
        """
        self._batch.fill_shared(parts, self.cached)
        self._batch.wanted[: len(marked)] = marked
        self._decode([Part(0, sequence, part.tokens, None, None) for part in parts for sequence in part.sequences])
        n_marked = int(np.count_nonzero(marked))
        if not n_marked:
            return np.empty((0, self.model.n_vocab), np.float32)
        return np.ctypeslib.as_array(llama().llama_get_logits(self.pointer), (n_marked, self.model.n_vocab))

    def clear(self) -> None:
        """Empty the cache of all sequences."""
        llama().llama_memory_clear(self.memory, True)
        for held in self.cached:
            held.clear()

    def copy(self, source: int, targets: Sequence[int]) -> None:
        """Let other sequences hold what `source` does, instead of what they held; a cache that is shared keeps it once.

        Between caches of their own llama.cpp would copy at the next batch only, whatever `source` holds by then.
        """
        state = None if self.kv_unified else self.save(source)
        for target in targets:
            if state is not None:
                self.restore(target, self.cached[source], state)
                continue
            self.forget(target)
            llama().llama_memory_seq_cp(self.memory, source, target, -1, -1)
            self.cached[target].extend(self.cached[source])

    def reuse(self, sequence: int, tokens: Sequence[int]) -> int:
        """Keep of a sequence what is a prefix of `tokens`, forget the rest; return how many tokens are kept.

        At least the last of `tokens` is left to decode, since its logits are wanted.
        """
        held = self.cached[sequence]
        shared = shared_prefix(held, tokens[:-1])
        if shared < len(held):
            removed = self.model.can_rewind and llama().llama_memory_seq_rm(self.memory, sequence, shared, -1)
            if not removed:
                self.forget(sequence)
                return 0
            del held[shared:]
        return shared

    def forget(self, sequence: int) -> None:
        """Drop a sequence from the cache."""
        llama().llama_memory_seq_rm(self.memory, sequence, -1, -1)
        self.cached[sequence].clear()

    def saved_bytes(self, sequence: int) -> int:
        """Return the bytes that a `save` takes."""
        return int(llama().llama_state_seq_get_size(self.pointer, sequence))

    def save(self, sequence: int) -> np.ndarray:
        """Copy what the cache holds of a sequence into memory, for `restore`."""
        api = llama()
        state = np.empty(self.saved_bytes(sequence), np.uint8)
        n_bytes = api.llama_state_seq_get_data(self.pointer, octets(state), state.size, sequence)
        return state[:n_bytes]

    def restore(self, sequence: int, tokens: Sequence[int], state: np.ndarray) -> bool:
        """Let a sequence hold the tokens that a `save` was of; False, and it holds nothing, if there is no room."""
        self.forget(sequence)
        if not llama().llama_state_seq_set_data(self.pointer, octets(state), state.size, sequence):
            self.forget(sequence)
            return False
        self.cached[sequence].extend(tokens)
        return True

    def room(self) -> int:
        """Return how many more tokens the cache takes, over all sequences."""
        return self.n_ctx - sum(map(len, self.cached))

    def logits(self, row: int = -1) -> np.ndarray:
        """Return the logits [n_vocab] of an output of the last batch, a view that the next step overwrites."""
        pointer = llama().llama_get_logits_ith(self.pointer, row)
        return np.ctypeslib.as_array(pointer, (self.model.n_vocab,))

    def cancel(self) -> None:
        """Stop the computation that runs, or the next one; any thread may call this."""
        self._cancel.raw = b"\1"

    def resume(self) -> None:
        """Take back a `cancel` that came too late."""
        self._cancel.raw = b"\0"

    def close(self) -> None:
        """Free the context."""
        if self.pointer:
            llama().llama_free(self.pointer)
            self.pointer = None

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def choose(self, part: "Part", row: int) -> "Choice":
        """Let a part's sampler choose the token after a row of the last batch. Raises EngineError (a grammar's end)."""
        assert part.sampler is not None
        token = part.sampler.sample(self.pointer, row)
        if part.n_logprobs is None:
            return Choice(token)
        return Choice(token, token_logprob(self.logits(row), token, part.n_logprobs))

    def _decode(self, parts: Sequence["Part"]) -> None:
        if self._cancel.raw != b"\0":
            self.resume()
            raise Cancelled("cancelled")
        complaints: list[str] = []
        with listening(complaining(complaints)):
            status = llama().llama_decode(self.pointer, self._batch.struct)
        for part in parts:
            self.cached[part.sequence].extend(part.tokens)
        if status:
            self._reconcile({part.sequence for part in parts})
            if status == ABORTED:
                self.resume()
                raise Cancelled("cancelled")
            if status == NO_ROOM:
                raise ContextFull(
                    f"the context of {self.n_ctx} tokens is full; use a larger -c/--ctx-size or a shorter prompt"
                )
            raise EngineError(f"{self.model.path}: llama.cpp cannot compute: {first_reason(complaints)}")

    def _reconcile(self, sequences: set[int]) -> None:
        """Make our books agree with the cache after a batch that was not finished."""
        for sequence in sequences:
            if self.model.can_rewind:
                held = llama().llama_memory_seq_pos_max(self.memory, sequence) + 1
                del self.cached[sequence][held:]
            else:
                self.forget(sequence)


class Part(NamedTuple):
    """A stretch of the feed numbered `feed` that goes into one batch; only the feed's last one samples."""

    feed: int
    sequence: int
    tokens: Sequence[int]
    sampler: Sampler | None
    n_logprobs: int | None


@dataclass(frozen=True)
class Shared:
    """Tokens to append to `count` sequences at once, from number `first` on; these must hold the same so far."""

    first: int
    count: int
    tokens: Sequence[int]

    @property
    def sequences(self) -> range:
        """The numbers of its sequences."""
        return range(self.first, self.first + self.count)


def batches(feeds: Sequence[Feed], n_batch: int) -> Iterator[list[Part]]:
    """Cut feeds, in their order, into batches of at most n_batch tokens."""
    parts: list[Part] = []
    room = n_batch
    for number, feed in enumerate(feeds):
        start = 0
        while start < len(feed.tokens):
            stop = min(start + room, len(feed.tokens))
            last = stop == len(feed.tokens)
            tokens = feed.tokens if stop - start == len(feed.tokens) else feed.tokens[start:stop]
            sampler = feed.sampler if last else None
            parts.append(Part(number, feed.sequence, tokens, sampler, feed.n_logprobs))
            room -= stop - start
            start = stop
            if not room:
                yield parts
                parts, room = [], n_batch
    if parts:
        yield parts


class Batch:
    """The arrays behind a `llama_batch`, filled in place."""

    def __init__(self, n_batch: int, n_seq_max: int) -> None:
        """Allocate for n_batch tokens, each in one of n_seq_max sequences."""
        self.token = np.zeros(n_batch, np.int32)
        self.pos = np.zeros(n_batch, np.int32)
        self.n_seq_id = np.ones(n_batch, np.int32)
        self.wanted = np.zeros(n_batch, np.int8)
        self._ids = np.arange(n_seq_max, dtype=np.int32)
        self._address = self._ids.ctypes.data
        self.seq_id = np.full(n_batch, self._address, np.uintp)
        self._scalars = (self.token.data, self.pos.data, self.seq_id.data, self.wanted.data)
        struct = llama().llama_batch()
        for name, array in (
            ("token", self.token),
            ("pos", self.pos),
            ("n_seq_id", self.n_seq_id),
            ("seq_id", self.seq_id),
            ("logits", self.wanted),
        ):
            kind = dict(struct._fields_)[name]
            setattr(struct, name, ctypes.cast(array.ctypes.data, kind))
        self.struct = struct
        self._shares = False

    def fill_shared(self, parts: Sequence[Shared], cached: Sequence[Sequence[int]]) -> None:
        """Write parts behind what their sequences hold and what earlier parts add to them; no logits are wanted."""
        start, ends = 0, [len(tokens) for tokens in cached]
        for part in parts:
            stop = start + len(part.tokens)
            first = ends[part.first]
            self.token[start:stop] = part.tokens
            self.pos[start:stop] = np.arange(first, first + stop - start)
            self.seq_id[start:stop] = self._address + part.first * self._ids.itemsize
            self.n_seq_id[start:stop] = part.count
            for sequence in part.sequences:
                ends[sequence] += stop - start
            start = stop
        self.wanted[:start] = 0
        self.struct.n_tokens = start
        self._shares = True

    def fill(self, parts: Sequence[Part], cached: Sequence[Sequence[int]]) -> list[int]:
        """Write parts behind what their sequences hold; return the row of each part's last token."""
        if self._shares:
            self.n_seq_id[:] = 1
            self._shares = False
        start, rows = 0, []
        token, pos, seq_id, wanted = self._scalars
        for _, sequence, tokens, sampler, _ in parts:
            stop = start + len(tokens)
            first, address = len(cached[sequence]), self._address + sequence * 4
            if stop - start == 1:
                token[start], pos[start], seq_id[start] = tokens[0], first, address
            else:
                self.token[start:stop] = tokens
                self.pos[start:stop] = np.arange(first, first + stop - start)
                self.seq_id[start:stop] = address
                self.wanted[start:stop] = 0
            wanted[stop - 1] = sampler is not None
            rows.append(stop - 1)
            start = stop
        self.struct.n_tokens = start
        return rows


def token_logprob(logits: np.ndarray, token: int, n_top: int) -> TokenLogprob:
    """Return the log probability of a token under logits [n_vocab], and the n_top likeliest tokens with theirs."""
    highest = float(logits.max())
    total = highest + float(np.log(np.exp(logits - highest, dtype=np.float64).sum()))
    best = np.argpartition(logits, -n_top)[-n_top:] if n_top else np.empty(0, np.int64)
    best = best[np.argsort(-logits[best], kind="stable")]
    return TokenLogprob(
        token, float(logits[token]) - total, tuple((int(each), float(logits[each]) - total) for each in best)
    )


def octets(array: np.ndarray) -> Any:
    """Return an array of bytes as llama.cpp takes it."""
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def shared_prefix(held: Sequence[int], tokens: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common at their start."""
    length = min(len(held), len(tokens))
    if held[:length] == list(tokens[:length]):
        return length
    return next((i for i in range(length) if held[i] != tokens[i]), length)


@cache
def nonzero_callback() -> Callable[..., Any]:
    """Return a `ggml_abort_callback` that tells whether the byte at its data is set, without entering Python.

    ggml calls it at every node of the graph, so it is C's own strlen: 0 for an empty string, 1 for "\\1".
    """
    library = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
    address = ctypes.cast(library.strlen, ctypes.c_void_p).value
    return llama().ggml_abort_callback(address)
