"""The machine code behind `routing_tap.RoutingTap`: what llama.cpp calls for every node of its graph, by Numba.

Only imported for mixtures that are served: Numba takes a while to load.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from .routing_state import (
    CHOSEN,
    FIELDS,
    FORCED,
    GET,
    LATEST,
    LISTENS,
    LOGIT,
    N_BATCH,
    N_EXPERT,
    N_LAYER,
    N_OUTPUTS,
    N_TOKENS,
    N_UBATCH,
    N_USED,
    OUTPUTS,
    REROUTES,
    SCRATCH,
    SET,
    TOPK,
    WANTED,
    WEIGHT,
    WEIGHTS,
)
from .tap import TensorHead

NEVER = -1e4  # a routing logit whose expert gets no weight
NAME_AT, SHAPE_AT, STRIDES_AT = TensorHead.name.offset, TensorHead.ne.offset, TensorHead.nb.offset
PREFIX, TOPK_NAME, WEIGHTS_NAME, LOGITS_NAME = (
    np.frombuffer(text, np.uint8) for text in (b"ffn_moe_", b"topk-", b"weights-", b"logits-")
)


def compiled(compiler: Callable[..., Any], *arguments: Any) -> Callable[[Any], Any]:
    """Return a decorator that compiles, and keeps the code on disk where that is possible."""

    def decorate(function: Any) -> Any:
        try:
            return compiler(*arguments, cache=True)(function)
        except RuntimeError:  # what Numba raises when no folder for the cache can be written
            return compiler(*arguments)(function)

    return decorate


def pointer_to(kind: Any) -> Any:
    """Return a function of compiled code that makes an address a pointer."""

    @intrinsic
    def pointer(_: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.intp), generate

    return pointer


@intrinsic
def _move(_: Any, function: Any, tensor: Any, data: Any, start: Any, size: Any) -> Any:
    """Call ggml_backend_tensor_get or _set by its address: (tensor, data, start, size), each a machine word."""

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 4)
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), list(arguments[1:]))
        return context.get_dummy_value()

    return types.none(*[types.intp] * 5), generate


move: Any = _move  # the type checker sees the typing context as an argument
bytes_at, ints_at = pointer_to(types.uint8), pointer_to(types.int32)
longs_at, floats_at = pointer_to(types.int64), pointer_to(types.float32)


@compiled(njit)
def begins(name: Any, start: int, text: Any) -> bool:
    """Tell whether a name goes on with a text."""
    for i in range(len(text)):  # noqa: SIM110 - Numba has no all()
        if name[start + i] != text[i]:
            return False
    return True


@compiled(njit)
def number(name: Any, start: int) -> int:
    """Return the layer at the end of a name, -1 when the name does not end so."""
    found = 0
    for i in range(start, 64):
        if name[i] == 0:
            return found if i > start else -1
        if name[i] < 48 or name[i] > 57:
            return -1
        found = 10 * found + name[i] - 48
    return -1


@compiled(njit)
def send(tensor: int, start: int, index: int, state: Any) -> None:
    """Write routing logits that leave one expert, if the token must go to one."""
    expert = carray(ints_at(state[FORCED]), state[N_BATCH])[index]
    if expert >= 0:
        scores = carray(floats_at(state[SCRATCH]), state[N_EXPERT])
        scores[:] = NEVER
        scores[expert] = 0
        move(state[SET], tensor, state[SCRATCH], start, 4 * state[N_EXPERT])


@compiled(njit)
def rows(tensor: int, kind: int, layer: int, state: Any) -> None:
    """Read or write the rows of a tensor, one for each token of a micro-batch, or for each output in the last layer."""
    shape, strides = carray(longs_at(tensor + SHAPE_AT), 4), carray(longs_at(tensor + STRIDES_AT), 4)
    axis = 2 if kind == WEIGHT else 1
    offset = state[LATEST + 3 + kind]
    n_here = min(state[N_UBATCH], state[N_TOKENS] - offset)
    outputs = carray(ints_at(state[OUTPUTS]), state[N_OUTPUTS])
    first = 0
    while first < len(outputs) and outputs[first] < offset:
        first += 1
    for row in range(shape[axis]):
        index = offset + row if shape[axis] == n_here else outputs[min(first + row, len(outputs) - 1)]
        if kind == LOGIT:
            send(tensor, row * strides[1], index, state)
        elif carray(bytes_at(state[WANTED]), state[N_BATCH])[index]:
            base = state[CHOSEN] if kind == TOPK else state[WEIGHTS]
            to = base + 4 * state[N_USED] * (layer * state[N_BATCH] + index)
            move(state[GET], tensor, to, row * strides[axis], 4 * state[N_USED])


@compiled(cfunc, types.uint8(types.intp, types.uint8, types.intp))
def callback(tensor: int, asks: int, data: int) -> int:
    """Tell llama.cpp whether it is to compute up to this tensor (asks), or, when it has, whether to go on."""
    state = carray(longs_at(data), FIELDS)
    other = 0 if asks else 1
    if state[LISTENS] == 0 and state[REROUTES] == 0:
        return other
    name = carray(bytes_at(tensor + NAME_AT), 64)
    if not begins(name, 0, PREFIX):
        return other
    kind, layer = -1, -1
    if state[LISTENS] and begins(name, 8, TOPK_NAME):
        kind, layer = TOPK, number(name, 13)
    elif state[LISTENS] and begins(name, 8, WEIGHTS_NAME):
        kind, layer = WEIGHT, number(name, 16)
    elif state[REROUTES] and begins(name, 8, LOGITS_NAME):
        kind, layer = LOGIT, number(name, 15)
    if kind < 0 or layer < 0 or layer >= state[N_LAYER]:
        return other
    if asks:
        return 1
    if layer <= state[LATEST + kind]:  # the next micro-batch
        state[LATEST + 3 + kind] += state[N_UBATCH]
    state[LATEST + kind] = layer
    rows(tensor, kind, layer, state)
    return 1
