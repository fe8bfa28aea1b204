"""The pickle of a PyTorch checkpoint, read by a machine that can do nothing but build a dict of tensors.

In: the bytes of data.pkl. Out: names and the tensors that they stand for, without their values. Nothing is imported or
called: a name of Python is a value like others, and only those of tensors, storages and OrderedDict mean something.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError

STORAGES = {
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "UntypedStorage": "",
}
DTYPE_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}


@dataclass(frozen=True)
class Storage:
    """A storage: the entry of the archive, the dtype of its values ("" where the tensor says it), and how many."""

    key: str
    dtype: str
    n_values: int


@dataclass(frozen=True)
class Pickled:
    """A tensor: consecutive values of a storage, `offset` counted in values."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """A name of Python that the pickle mentions; never looked up."""

    module: str
    name: str


class _Refused(Exception):
    """Why a pickle is not read."""


_MARK = object()
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(data: bytes, where: Path) -> dict[str, Pickled]:
    """Return the tensors of a data.pkl by name. Raises CheckpointError for anything else than a dict of tensors."""
    try:
        found = _run(data)
        if not isinstance(found, dict):
            raise _Refused(f"it holds a {type(found).__name__.strip('_')}, not a dict of tensors")
        for name, tensor in found.items():
            if not isinstance(name, str) or not isinstance(tensor, Pickled):
                raise _Refused(f"{str(name)[:80]!r} is no tensor; a dict of tensors (a state_dict) is needed")
    except _Refused as error:
        raise CheckpointError(f"{where}: {error}") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError) as error:
        raise CheckpointError(f"{where}: broken pickle ({type(error).__name__}); download or copy it again") from None
    return found


def _run(data: bytes) -> Any:
    """Return what the pickle builds."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else int(argument)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            _do(name, argument, stack)
    raise _Refused("its pickle has no end; download or copy it again")


def _do(name: str, argument: Any, stack: list[Any]) -> None:
    """Do what takes values from the stack."""
    if name == "MARK":
        stack.append(_MARK)
    elif name == "GLOBAL":
        stack.append(_name(*str(argument).split(" ", 1)))
    elif name == "STACK_GLOBAL":
        stack[-2:] = [_name(*stack[-2:])]
    elif name == "TUPLE":
        values = _marked(stack)
        stack.append(tuple(values))
    elif name in ("APPEND", "APPENDS"):
        values = [stack.pop()] if name == "APPEND" else _marked(stack)
        stack[-1].extend(values)
    elif name in ("SETITEM", "SETITEMS"):
        values = _marked(stack) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
        if not isinstance(stack[-1], dict):
            raise _Refused("its pickle is no dict of tensors")
        stack[-1].update(zip(values[::2], values[1::2], strict=True))
    elif name == "BINPERSID":
        stack.append(_storage(stack.pop()))
    elif name == "REDUCE":
        arguments = stack.pop()
        stack.append(_call(stack.pop(), arguments))
    elif name == "BUILD":
        stack.pop()  # the attributes of a dict (its _metadata): not needed, and nothing else has any
        if not isinstance(stack[-1], dict):
            raise _Refused("it gives attributes to what is no dict; refused")
    else:
        raise _Refused(f"its pickle has the instruction {name}, which no dict of tensors needs; refused")


def _marked(stack: list[Any]) -> list[Any]:
    """Take the values above the last mark, and the mark."""
    at = len(stack) - 1
    while stack[at] is not _MARK:
        at -= 1
        if at < 0:
            raise IndexError
    values = stack[at + 1 :]
    del stack[at:]
    return values


def _name(module: str, name: str) -> _Name:
    """Return a name that tensors are made with; refuse every other one."""
    rebuilds = name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter")
    known = {
        "collections": name == "OrderedDict",
        "torch._utils": rebuilds,
        "torch": name in STORAGES or name in DTYPE_NAMES or name == "Size",
        "torch.storage": name in STORAGES,
    }
    if not known.get(module, False):
        raise _Refused(
            f"its pickle asks for {module[:60]}.{name[:60]}, which is no part of a tensor and could run code; refused"
        )
    return _Name(module, name)


def _storage(of: Any) -> Storage:
    """Return the storage of a persistent id ("storage", type, key, device, number of values)."""
    if not isinstance(of, tuple) or len(of) != 5 or of[0] != "storage" or not isinstance(of[1], _Name):
        raise _Refused("its pickle refers to something that is no storage; refused")
    if of[1].name not in STORAGES or not isinstance(of[2], str):
        raise _Refused("its pickle refers to a storage of no known type; refused")
    return Storage(of[2], STORAGES[of[1].name], of[4])


def _call(name: Any, arguments: Any) -> Any:
    """Return what a call that makes an OrderedDict, a tensor or a parameter stands for."""
    if not isinstance(name, _Name) or not isinstance(arguments, tuple):
        raise _Refused("its pickle calls what is no function; refused")
    if name.name == "OrderedDict":
        return dict(arguments[0]) if arguments else {}
    if name.name == "Size":
        return tuple(arguments[0])
    if name.name == "_rebuild_parameter":
        return arguments[0]
    if not name.name.startswith("_rebuild_tensor"):
        raise _Refused(f"its pickle calls {name.module}.{name.name}; refused")
    storage, offset, shape, strides = arguments[:4]
    dtype = storage.dtype
    if name.name == "_rebuild_tensor_v3":
        dtype = DTYPE_NAMES[arguments[6].name]
    if not isinstance(storage, Storage) or not dtype:
        raise _Refused("its pickle makes a tensor of what is no storage; refused")
    return Pickled(storage, dtype, offset, tuple(shape), tuple(strides))
