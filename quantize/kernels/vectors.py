"""SIMD values for Numba: code in the kernels computes with vectors of float32, int32 and masks as with numbers.

`load(array, index, LANES)` makes a vector; `+ - * /`, comparisons, `& | << >>` and the functions below work on
it, a plain number is repeated for every lane. LLVM maps the vectors to what the CPU has (AVX-512, AVX2, NEON).
No operation is contracted or reordered: each lane is exactly IEEE single precision, as llama.cpp's scalar code.

Long because each operation on vectors is an intrinsic of its own.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.core.typeconv.castgraph import Conversion
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model, type_callable


def _lanes() -> int:
    """Return how many blocks a kernel works on at once: two registers, so that latencies overlap."""
    target: Any = cpu_target.target_context
    features = target.codegen().magic_tuple()[2].split(",")
    return 32 if "+avx512f" in features else 16


LANES = _lanes()
_ELEMENTS: dict[str, ir.Type] = {"float32": ir.FloatType(), "int32": ir.IntType(32), "mask": ir.IntType(1)}


class Vector(types.Type):
    """The Numba type of `width` float32, int32 or mask values."""

    def __init__(self, element: str, width: int) -> None:
        self.element = element
        self.width = width
        super().__init__(name=f"Vector({element}, {width})")

    def can_convert_from(self, typingctx: Any, other: types.Type) -> Conversion | None:
        return Conversion.safe if isinstance(other, types.Number) else None


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(_ELEMENTS[fe_type.element], fe_type.width))


def _operation(function: Callable[..., Any]) -> Any:
    """Make a function that kernels call, from one that types it; widths are known as the code is compiled."""
    return intrinsic(prefer_literal=True)(function)


def _splat(builder: Any, value: Any, width: int) -> Any:
    vector = ir.VectorType(value.type, width)
    index = ir.Constant(ir.IntType(32), 0)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, index)
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), width), None)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


@lower_cast(types.Number, Vector)
def _number_to_vector(context: Any, builder: Any, fromty: Any, toty: Vector, value: Any) -> Any:
    number = types.float32 if toty.element == "float32" else types.int32
    return _splat(builder, context.cast(builder, value, fromty, number), toty.width)


_ARITHMETIC = {
    operator.add: ("fadd", "add"),
    operator.sub: ("fsub", "sub"),
    operator.mul: ("fmul", "mul"),
    operator.truediv: ("fdiv", None),
    operator.and_: (None, "and_"),
    operator.or_: (None, "or_"),
    operator.lshift: (None, "shl"),
    operator.rshift: (None, "lshr"),
}
_ARITHMETIC |= {
    operator.iadd: _ARITHMETIC[operator.add],
    operator.isub: _ARITHMETIC[operator.sub],
    operator.imul: _ARITHMETIC[operator.mul],
    operator.iand: _ARITHMETIC[operator.and_],
    operator.ior: _ARITHMETIC[operator.or_],
}
_COMPARISONS = {
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.eq: "==",
    operator.ne: "!=",
}


def _define_operator(function: Any, is_comparison: bool) -> None:
    @type_callable(function)
    def typing(context: Any) -> Any:
        def typer(a: Any, b: Any) -> Any:
            vector = a if isinstance(a, Vector) else b
            if not isinstance(vector, Vector):
                return None
            result = Vector("mask", vector.width) if is_comparison else vector
            return result(vector, vector)

        return typer

    @lower_builtin(function, Vector, Vector)
    def lowering(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        is_float = sig.args[0].element == "float32"
        if not is_comparison:
            return getattr(builder, _ARITHMETIC[function][0 if is_float else 1])(*args)
        symbol = _COMPARISONS[function]
        if not is_float:
            return builder.icmp_signed(symbol, *args)
        # C's != holds for NaN, its other comparisons do not.
        return (builder.fcmp_unordered if symbol == "!=" else builder.fcmp_ordered)(symbol, *args)


for _function in _ARITHMETIC:
    _define_operator(_function, False)
for _function in _COMPARISONS:
    _define_operator(_function, True)


@type_callable(operator.invert)
def _invert_typing(context: Any) -> Any:
    def typer(a: Any) -> Any:
        return a if isinstance(a, Vector) and a.element == "mask" else None

    return typer


@lower_builtin(operator.invert, Vector)
def _invert_lowering(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.not_(args[0])


def _item_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, vector: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@_operation
def load(typingctx: Any, array: Any, index: Any, width: Any) -> Any:
    """Return `width` float32 or int32 values of a contiguous array from `index` on; uint8, uint16 are widened."""
    element = "float32" if array.dtype == types.float32 else "int32"
    vector = Vector(element, width.literal_value)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        stored = ir.VectorType(context.get_data_type(array.dtype), vector.width)
        pointer = _item_pointer(context, builder, array, args[0], args[1], stored)
        value = builder.load(pointer, align=array.dtype.bitwidth // 8)
        return builder.zext(value, context.get_value_type(vector)) if array.dtype.bitwidth < 32 else value

    return vector(array, types.intp, width), codegen


@_operation
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write a vector to a contiguous array from `index` on; int32 are cut to the array's uint8 or uint16."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        stored = ir.VectorType(context.get_data_type(array.dtype), value.width)
        pointer = _item_pointer(context, builder, array, args[0], args[1], stored)
        vector = builder.trunc(args[2], stored) if array.dtype.bitwidth < 32 else args[2]
        builder.store(vector, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@_operation
def splat(typingctx: Any, number: Any, width: Any) -> Any:
    """Return a float32 vector that holds `number` in every lane."""
    vector = Vector("float32", width.literal_value)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, context.cast(builder, args[0], number, types.float32), vector.width)

    return vector(number, width), codegen


@_operation
def select(typingctx: Any, mask: Any, then: Any, otherwise: Any) -> Any:
    """Return `then` where the mask holds, `otherwise` elsewhere; either may be a plain number."""
    vector = then if isinstance(then, Vector) else otherwise

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(*args)

    return vector(mask, vector, vector), codegen


@_operation
def smaller(typingctx: Any, a: Any, b: Any) -> Any:
    """Return a where a < b, else b; either may be a plain number."""
    return _choice("<")(a, b)


@_operation
def larger(typingctx: Any, a: Any, b: Any) -> Any:
    """Return a where a > b, else b; either may be a plain number."""
    return _choice(">")(a, b)


def _choice(symbol: str) -> Any:
    def typing(a: Any, b: Any) -> Any:
        vector = a if isinstance(a, Vector) else b

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.select(builder.fcmp_ordered(symbol, *args), *args)

        return vector(vector, vector), codegen

    return typing


def _unary(name: str, result_element: str | None = None) -> Any:
    def typing(value: Any) -> Any:
        vector = Vector(result_element or value.element, value.width)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            target = context.get_value_type(vector)
            if name.startswith("llvm."):
                function = cgutils.get_or_insert_function(
                    builder.module,
                    ir.FunctionType(target, [target]),
                    f"{name}.v{vector.width}f32",
                )
                return builder.call(function, args)
            return getattr(builder, name)(args[0], target)

        return vector(value), codegen

    return typing


@_operation
def nearest(typingctx: Any, value: Any) -> Any:
    """Round to the nearest integer, ties to even: llama.cpp's `nearest_int` for up to 2^22 in magnitude."""
    return _unary("llvm.nearbyint")(value)


@_operation
def round_away(typingctx: Any, value: Any) -> Any:
    """Round to the nearest integer, ties away from zero: C's `roundf`."""
    return _unary("llvm.round")(value)


@_operation
def absolute(typingctx: Any, value: Any) -> Any:
    """Return the magnitude of each lane."""
    return _unary("llvm.fabs")(value)


@_operation
def square_root(typingctx: Any, value: Any) -> Any:
    """Return the correctly rounded square root of each lane."""
    return _unary("llvm.sqrt")(value)


@_operation
def to_int(typingctx: Any, value: Any) -> Any:
    """Cut float32 lanes towards zero to int32."""
    return _unary("fptosi", "int32")(value)


@_operation
def to_float(typingctx: Any, value: Any) -> Any:
    """Convert int32 lanes to float32."""
    return _unary("sitofp", "float32")(value)


@_operation
def as_bits(typingctx: Any, value: Any) -> Any:
    """Reinterpret float32 lanes as int32."""
    return _unary("bitcast", "int32")(value)


@_operation
def from_bits(typingctx: Any, value: Any) -> Any:
    """Reinterpret int32 lanes as float32."""
    return _unary("bitcast", "float32")(value)


@_operation
def multiply_add(typingctx: Any, a: Any, number: Any, c: Any) -> Any:
    """Return a * number + c, rounded once; `number` is a float32 for every lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        target = context.get_value_type(c)
        name = f"llvm.fma.v{c.width}f32"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(target, [target] * 3), name)
        return builder.call(function, [args[0], _splat(builder, args[1], c.width), args[2]])

    return c(a, types.float32, c), codegen


@_operation
def any_lane(typingctx: Any, mask: Any) -> Any:
    """Tell whether the mask holds in some lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        whole = ir.IntType(mask.width)
        return builder.icmp_unsigned("!=", builder.bitcast(args[0], whole), ir.Constant(whole, 0))

    return types.boolean(mask), codegen


@_operation
def pack_bits(typingctx: Any, value: Any) -> Any:
    """Return the lowest bits of 16 int32 lanes as an integer, the first lane lowest."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.trunc(args[0], ir.VectorType(ir.IntType(1), value.width))
        return builder.zext(builder.bitcast(bits, ir.IntType(value.width)), ir.IntType(64))

    return types.int64(value), codegen


@_operation
def transpose(typingctx: Any, source: Any, start: Any, stride: Any, out: Any, out_start: Any, out_stride: Any) -> Any:
    """Write 16 rows of 16 float32 (rows `stride` apart) as 16 columns (rows of the result `out_stride` apart)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), 16)
        first, step, out_first, out_step = args[1], args[2], args[4], args[5]

        def at(begin: Any, distance: Any, row: int) -> Any:
            return builder.add(begin, builder.mul(distance, ir.Constant(distance.type, row)))

        rows = [
            builder.load(_item_pointer(context, builder, source, args[0], at(first, step, row), vector), align=4)
            for row in range(16)
        ]
        halves = [
            ir.Constant(ir.VectorType(ir.IntType(32), 16), [half + lane // 2 + 16 * (lane % 2) for lane in range(16)])
            for half in (0, 8)
        ]
        for _ in range(4):  # four perfect shuffles of 16 rows turn rows into columns
            rows = [builder.shuffle_vector(rows[row // 2], rows[row // 2 + 8], halves[row % 2]) for row in range(16)]
        for row in range(16):
            pointer = _item_pointer(context, builder, out, args[3], at(out_first, out_step, row), vector)
            builder.store(rows[row], pointer, align=4)
        return context.get_dummy_value()

    index = types.intp
    return types.void(source, index, index, out, index, index), codegen
