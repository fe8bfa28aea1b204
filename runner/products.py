"""What matrices of weights are multiplied by: token batches in, the inputs of llama.cpp's matrix products out.

llama-imatrix (tools/imatrix/imatrix.cpp) takes the same: src1 of every MUL_MAT of at least 16 rows and of every
MUL_MAT_ID. Matrices with one input (q, k and v; gate and up) are told together: it is read once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType

from ..formats.llamacpp import llama
from ..models.tensor_roles import layer_of
from .attention import VALUE, Averages, is_attention
from .tap import TensorHead, functions, read_tensor, view_of

LEAST_ROWS = 16
F32 = int(GGMLQuantizationType.F32)
WEIGHTS, NO_WEIGHTS = b"ffn_moe_weights", b"ffn_moe_weights_sum"


@dataclass(frozen=True)
class Input:
    """What a matrix of weights is multiplied by in one graph, a view that is gone after the call.

    - weight: the name of the first matrix that takes it; `Products.shared` names the others.
    - x: float32 [n_matrix, n_token, row_length], n_matrix being 1 for most; for experts
      [n_token, 1 or n_expert_used, row_length].
    - experts: int32 [n_token, n_expert_used], the likeliest first, or None; n_expert is 0 then.
    - router: the weights that the experts' outputs get, float32 [n_token, n_expert_used], or None when not asked for.
    """

    weight: str
    x: np.ndarray
    n_expert: int = 0
    experts: np.ndarray | None = None
    router: np.ndarray | None = None


class Products:
    """A `cb_eval` callback that hands inputs of wanted matrices to a function; give it to a TappedEngine."""

    def __init__(
        self,
        wanted: Callable[[str], bool],
        on_input: Callable[[Input], None],
        last: str | None = None,
        routers: bool = True,
        averaged: Iterable[str] = (),
        on_average: Callable[[Input], None] | None = None,
    ) -> None:
        """Listen for products of matrices that `wanted` accepts; what comes after that of `last` is not computed.

        Without `routers` their weights are not read. `on_average` gets for each attn_v.weight in `averaged` what
        attention makes of its inputs (see attention.py), beside the inputs themselves.
        """
        self._wanted = cache(wanted)
        self._on_input = on_input
        self._last = last
        self._reads_routers = routers
        self._averaged = frozenset(averaged)
        self._on_average = on_average
        self.averages = Averages()
        self._error: BaseException | None = None
        self._seen: dict[tuple[int, bool], str] = {}
        self._router: int | None = None
        self._ends = False
        self.shared: dict[str, list[str]] = {}
        self.n_tokens = 0
        self.callback = llama().ggml_backend_sched_eval_callback(self._called)

    def raise_error(self) -> None:
        """Raise what `on_input` raised inside the callback, where nothing may be raised."""
        error, self._error = self._error, None
        self._seen.clear()
        if error is not None:
            raise error

    def _called(self, tensor: int, asks: bool, _: Any) -> bool:
        if self._error is not None:
            return False
        try:
            return self._asked(tensor) if asks else self._computed(tensor)
        except BaseException as error:
            self._error = error
            return False

    def _asked(self, tensor: int) -> bool:
        head = TensorHead.from_address(tensor)
        matmul, matmul_id = operations()
        if head.op not in (matmul, matmul_id):
            name = head.name
            if name.startswith(WEIGHTS) and not name.startswith(NO_WEIGHTS):
                self._router = tensor
            return self.averages.awaits and is_attention(head)
        name = weight_name(TensorHead.from_address(head.src[0]).name)
        if not self._wanted(name):
            return False
        if head.op == matmul and not enough(TensorHead.from_address(head.src[1])):
            self._ends = False
            return name in self._averaged  # what later tokens look at must not be missing
        if name == next(iter(self.shared), None):
            self._seen.clear()
        key = (head.src[1], head.op == matmul_id)
        leader = self._seen.setdefault(key, name)
        names = self.shared.setdefault(leader, [leader])
        if name not in names:
            names.append(name)
        self._ends = name == self._last
        return leader == name or self._ends or name in self._averaged

    def _computed(self, tensor: int) -> bool:
        head = TensorHead.from_address(tensor)
        if head.op not in operations():
            assert self._on_average
            weight, x = self.averages.averaged(tensor)
            self._on_average(Input(weight, x[None]))
            return True
        name = weight_name(TensorHead.from_address(head.src[0]).name)
        counts = head.op == operations()[1] or enough(TensorHead.from_address(head.src[1]))
        if counts and self._seen.get((head.src[1], head.op == operations()[1])) == name:
            self._on_input(self._input(head, name))
        if name in self._averaged:
            x = view_of(head.src[1])
            self.averages.keep(name, x.reshape(-1, x.shape[-1]))
        return not self._ends

    def _input(self, head: TensorHead, name: str) -> Input:
        x = view_of(head.src[1])
        matrix = TensorHead.from_address(head.src[0])
        if head.op == operations()[1]:
            experts = read_tensor(head.src[2], x.shape[1]).reshape(x.shape[1], -1)
            router = None
            if self._reads_routers and self._router is not None:
                router = read_tensor(self._router, x.shape[1]).reshape(experts.shape)
            return Input(name, x[0], matrix.ne[2], experts, router)
        n_matrix = matrix.ne[2] * matrix.ne[3]
        if n_matrix == 1:
            return Input(name, x.reshape(1, -1, x.shape[-1]))
        # As llama-imatrix does: what a matrix is multiplied by in turn is counted for it.
        turns = x.reshape(-1, *x.shape[2:])
        return Input(name, np.stack([turns[number::n_matrix].reshape(-1, x.shape[-1]) for number in range(n_matrix)]))


class Survey(Products):
    """Hears of a graph's products before they are computed: `shared`, and `sizes` (row length, experts or 0).

    `averaged` are those attn_v.weight whose attention can be heard, so that Products has averages of their inputs.
    `on_all` is called once those of all `expected` matrices were heard of, and may stop the computation. Of a graph
    that is cut between devices the parts before the last have been computed then.
    """

    def __init__(self, wanted: Callable[[str], bool], expected: Iterable[str], on_all: Callable[[], None]) -> None:
        super().__init__(wanted, lambda _: None)
        self.sizes: dict[str, tuple[int, int]] = {}
        self.averaged: list[str] = []
        self._value = ""
        self._missing = set(expected)
        self._on_all = on_all

    def _asked(self, tensor: int) -> bool:
        leads = super()._asked(tensor)
        head = TensorHead.from_address(tensor)
        if head.op not in operations():
            if self._value and is_attention(head):
                self.averaged.append(self._value)
                self._value = ""
            return False
        matrix, x = (TensorHead.from_address(source) for source in head.src[:2])
        name = weight_name(matrix.name)
        if leads:
            self.sizes[name] = x.ne[0], matrix.ne[2] if head.op == operations()[1] else 0
        if name in self._missing:
            self._missing.remove(name)
            if name.endswith(VALUE):
                self._value = name
            elif layer_of(name) != layer_of(self._value):  # attention without such a node
                self._value = ""
            if not self._missing:
                self._on_all()
        return False


def weight_name(name: bytes) -> str:
    """Return a weight's name without what a scheduler puts around a copy: CUDA0#blk.0.attn_k.weight#0."""
    parts = name.decode("utf-8", "replace").split("#")
    return parts[1] if len(parts) > 1 else parts[0]


def enough(x: TensorHead) -> bool:
    """Tell whether an input has what llama-imatrix demands of it."""
    return x.type == F32 and x.ne[1] >= LEAST_ROWS


@cache
def operations() -> tuple[int, int]:
    """Return the numbers of MUL_MAT and MUL_MAT_ID."""
    names = [functions().ggml_op_name(number).decode() for number in range(64)]
    return names.index("MUL_MAT"), names.index("MUL_MAT_ID")
