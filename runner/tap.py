"""Batches of tokens in, named tensors of llama.cpp's graph out while it computes: what routers see and choose.

A tensor can be replaced before the rest of the graph is computed from it.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from gguf.constants import GGMLQuantizationType

from ..formats.errors import EngineError
from ..formats.llamacpp import ggml, llama
from .engine import Engine
from .interrupt import interruptible
from .load_options import LoadOptions
from .losses import logit_blocks
from .model import Model

DTYPES = {
    GGMLQuantizationType.F32: np.dtype(np.float32),
    GGMLQuantizationType.F16: np.dtype(np.float16),
    GGMLQuantizationType.I32: np.dtype(np.int32),
}
OnTensor = Callable[[str, np.ndarray], np.ndarray | None]


class TensorHead(ctypes.Structure):
    """The fields of struct ggml_tensor (ggml/include/ggml.h), up to its name."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


class Tap:
    """A `cb_eval` callback that hands wanted tensors to a function; give `callback` to an Engine."""

    def __init__(
        self, wanted: Callable[[str], bool], on_tensor: OnTensor, last: str | None = None, factors: bool = False
    ) -> None:
        """Listen for tensors whose names `wanted` accepts, such as "ffn_moe_topk-3"; names are asked once each.

        What `on_tensor` returns, unless None, takes the tensor's place. What comes after the wanted tensor `last` is
        not computed: the logits are then none. With `factors`, wanted tensors are products of a matrix of weights,
        and what the weights are multiplied by is handed over instead.
        """
        self._wanted = cache(wanted)
        self._on_tensor = on_tensor
        self._last = last
        self._factors = factors
        self._error: BaseException | None = None
        self.n_tokens = 0
        self.callback = llama().ggml_backend_sched_eval_callback(self._called)

    def raise_error(self) -> None:
        """Raise what `on_tensor` raised inside the callback, where nothing may be raised."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _called(self, tensor: int, asks: bool, _: Any) -> bool:
        if self._error is not None:
            return False
        try:
            name = functions().ggml_get_name(tensor).decode("utf-8", "replace")
            if not self._wanted(name):
                return not asks
            if not asks:
                given = factor_of(tensor, name) if self._factors else tensor
                changed = self._on_tensor(name, read_tensor(given, self.n_tokens))
                if changed is not None:
                    write_tensor(tensor, changed)
                return name != self._last
        except BaseException as error:
            self._error = error
            return False
        return True


class Listening(Protocol):
    """Listens to an engine's graphs by its `callback`; `n_tokens` is set to those of each batch."""

    n_tokens: int
    callback: Any

    def raise_error(self) -> None:
        """Raise what went wrong inside the callback."""
        ...


class TappedEngine(Engine):
    """An engine whose graphs are listened to: decoding raises what the listener raised, and stops at Ctrl-C."""

    def __init__(self, model: Model, options: LoadOptions, tap: Listening) -> None:
        """Make the context. Raises EngineError when it does not fit."""
        super().__init__(model, options, tap.callback)
        self._tap = tap

    def decode_marked(self, parts: Sequence[tuple[int, Sequence[int]]], marked: np.ndarray) -> np.ndarray:
        """Append tokens as any engine does, while their graph is listened to."""
        self._tap.n_tokens = len(marked)
        with interruptible(self):
            logits = super().decode_marked(parts, marked)
        self._tap.raise_error()
        return logits

    def decode_all(self, sequence: int, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens as any engine does, while their graph is listened to."""
        self._tap.n_tokens = len(tokens)
        with interruptible(self):
            logits = super().decode_all(sequence, tokens)
        self._tap.raise_error()
        return logits


def collect(
    model: Model,
    options: LoadOptions,
    token_batches: Iterable[Sequence[int]],
    wanted: Callable[[str], bool],
    on_tensor: OnTensor,
    last: str | None = None,
    factors: bool = False,
) -> None:
    """Decode each batch of tokens with an empty context and hand over the wanted tensors of every computed graph.

    A batch longer than options.n_ubatch is computed in several graphs, in order. The first axis of an array is
    the tokens: ffn_moe_topk-N is int32 [tokens, n_expert_used], ffn_norm-N and l_out-N are float32
    [tokens, n_embd]. Every token is an output, so that the last layers are computed for all of them; what comes after
    the tensor `last` is left out; `factors`: see Tap. Raises what `on_tensor` raises.
    """
    with TappedEngine(model, options, Tap(wanted, on_tensor, last, factors)) as engine:
        decode_each(engine, token_batches)


def decode_each(engine: Engine, token_batches: Iterable[Sequence[int]]) -> None:
    """Decode each batch of tokens with an empty context, for what listens."""
    for tokens in token_batches:
        engine.forget(0)
        for _ in logit_blocks(engine, 0, tokens):
            pass


def capture(
    model: Model, options: LoadOptions, tokens: Sequence[int], wanted: Callable[[str], bool]
) -> dict[str, np.ndarray]:
    """Decode tokens and return the wanted tensors, those of several graphs joined along the tokens."""
    parts: dict[str, list[np.ndarray]] = {}
    collect(model, options, [tokens], wanted, lambda name, array: parts.setdefault(name, []).append(array))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def read_tensor(tensor: int, n_tokens: int) -> np.ndarray:
    """Copy a tensor from its device into an array whose first axis is the tokens, the fastest axis last.

    Views with gaps between rows, as ffn_moe_topk-N is one of all sorted experts, are read by their strides nb.
    """
    view = view_of(tensor)
    if not view.size:
        return np.empty((0, view.shape[-1]), view.dtype)
    array = view.squeeze(tuple(axis for axis in (0, 1) if view.shape[axis] == 1)).copy()
    return array if len(array) == n_tokens else array[None]


def view_of(tensor: int) -> np.ndarray:
    """Return a tensor as [ne3, ne2, ne1, ne0]: in place where the computer can read it, else copied.

    Raises EngineError for a type that numpy has not.
    """
    head = TensorHead.from_address(tensor)
    dtype = DTYPES.get(GGMLQuantizationType(head.type))
    if dtype is None:
        raise EngineError(f"a tensor of type {GGMLQuantizationType(head.type).name} cannot be captured")
    shape, strides = tuple(head.ne)[::-1], tuple(head.nb)[::-1]
    if not all(shape):
        return np.empty(shape, dtype)
    span = dtype.itemsize + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if head.buffer and is_host()(head.buffer):
        data = np.ctypeslib.as_array((ctypes.c_char * span).from_address(head.data)).view(np.uint8)
    else:
        data = np.empty(span, np.uint8)
        functions().ggml_backend_tensor_get(tensor, data.ctypes.data, 0, span)
    return np.lib.stride_tricks.as_strided(data[: dtype.itemsize].view(dtype), shape, strides)


@cache
def is_host() -> Callable[[int], bool]:
    """Return ggml's function that tells whether a buffer lies in this computer's memory."""
    function = ggml("ggml-base").ggml_backend_buffer_is_host
    function.restype, function.argtypes = ctypes.c_bool, [ctypes.c_void_p]
    return function


def factor_of(product: int, name: str) -> int:
    """Return the tensor that a matrix of weights was multiplied by. Raises EngineError for another operation."""
    head = TensorHead.from_address(product)
    operation = functions().ggml_op_name(head.op).decode()
    if operation != "MUL_MAT":
        raise EngineError(f"{name} of llama.cpp's graph of this model is no product of a matrix ({operation})")
    return head.src[1]


def write_tensor(tensor: int, array: np.ndarray) -> None:
    """Put an array, as large as the tensor, in its place on its device. Views with gaps between rows are refused."""
    head = TensorHead.from_address(tensor)
    dtype = DTYPES[GGMLQuantizationType(head.type)]
    data = np.ascontiguousarray(array, dtype)
    strides = [dtype.itemsize * int(np.prod(head.ne[:axis])) for axis in range(4)]
    if data.size != np.prod(head.ne) or list(head.nb) != strides:
        raise EngineError("a tensor with gaps, or one of another size, cannot be replaced")
    functions().ggml_backend_tensor_set(tensor, data.ctypes.data, 0, data.nbytes)


@cache
def functions() -> SimpleNamespace:
    """Return the functions of libggml-base used here, with their signatures."""
    base = ggml("ggml-base")
    base.ggml_get_name.restype, base.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    base.ggml_op_name.restype, base.ggml_op_name.argtypes = ctypes.c_char_p, [ctypes.c_int]
    for move in (base.ggml_backend_tensor_get, base.ggml_backend_tensor_set):
        move.restype, move.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    return SimpleNamespace(
        ggml_get_name=base.ggml_get_name,
        ggml_op_name=base.ggml_op_name,
        ggml_backend_tensor_get=base.ggml_backend_tensor_get,
        ggml_backend_tensor_set=base.ggml_backend_tensor_set,
    )
