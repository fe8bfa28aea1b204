"""llama.cpp's own quantizer behind one function: a GGUF file comes in, a quantized file and a report go out.

It runs in a process of its own, so that Ctrl-C stops it, its memory returns, and its aborts become errors.
"""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from gguf import GGMLQuantizationType
from moe_gguf.formats.errors import EngineError, GgufError, ImatrixError, MoeGgufError, OutputError, PlanError
from moe_gguf.formats.gguf_file import SPLIT_NAME, tensor_bytes
from moe_gguf.quantize.file_types import FileType, parse_file_type
from moe_gguf.quantize.imatrix import Imatrix
from moe_gguf.quantize.overrides import KvOverride

from .stock import OnTensor, StockJob, StockLog, StockTensor, run_stock


@dataclass(frozen=True)
class OracleReport:
    """What llama.cpp did or, in a dry run, would do; `fallbacks` maps tensors to types that did not fit."""

    outputs: tuple[Path, ...]
    tensors: tuple[StockTensor, ...]
    fallbacks: Mapping[str, GGMLQuantizationType]
    warnings: tuple[str, ...]
    needs_imatrix: bool
    seconds: float

    @property
    def types(self) -> dict[str, GGMLQuantizationType]:
        """The output's tensor types by name."""
        return {tensor.name: tensor.qtype for tensor in self.tensors}

    @property
    def n_bytes(self) -> int:
        """The exact bytes of all tensors, without padding and header."""
        return sum(tensor_bytes(tensor.shape, tensor.qtype) for tensor in self.tensors)


def quantize_file(
    source: Path,
    target: Path | None,
    file_type: FileType | str,
    *,
    n_threads: int = 0,
    imatrix: Imatrix | Mapping[str, np.ndarray] | None = None,
    tensor_types: Sequence[tuple[str, GGMLQuantizationType]] = (),
    output_tensor_type: GGMLQuantizationType | None = None,
    token_embedding_type: GGMLQuantizationType | None = None,
    leave_output_tensor: bool = False,
    pure: bool = False,
    allow_requantize: bool = False,
    kv_overrides: Sequence[KvOverride] = (),
    prune_layers: Sequence[int] = (),
    keep_split: bool = False,
    dry_run: bool = False,
    max_buffer_bytes: int = 0,
    on_tensor: OnTensor | None = None,
) -> OracleReport:
    """Quantize a GGUF file (or the first shard of a split one) with llama_model_quantize.

    `imatrix` maps tensor names to float32 values, n_expert times the row length each; an Imatrix also leaves
    its quantize.imatrix.* keys in the file, as with llama-quantize. `n_threads` 0 takes all; `max_buffer_bytes`
    bounds llama.cpp's buffers (0: its default, 8 GiB). `on_tensor(done, total, name, type)` is called after each
    tensor. With `dry_run` nothing is written and `target` may be None. The target appears when it is complete.
    Raises PlanError, ImatrixError, OutputError or EngineError with llama.cpp's reason.
    """
    kind = file_type if isinstance(file_type, FileType) else parse_file_type(file_type)
    _check_paths(source, target, dry_run)
    partial = Path(os.devnull) if target is None or dry_run else _partial_name(target, keep_split)
    job = StockJob(
        source=str(source),
        target=str(partial),
        ftype=kind.ftype,
        only_copy=kind.qtype is None,
        n_threads=n_threads,
        imatrix=imatrix.values if isinstance(imatrix, Imatrix) else imatrix,
        tensor_types=tensor_types,
        output_tensor_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
        leave_output_tensor=leave_output_tensor,
        pure=pure,
        allow_requantize=allow_requantize,
        kv_overrides=(*kv_overrides, *(imatrix.metadata_overrides() if isinstance(imatrix, Imatrix) else ())),
        prune_layers=prune_layers,
        keep_split=keep_split,
        dry_run=dry_run,
        max_buffer_bytes=max_buffer_bytes,
    )
    started = time.monotonic()
    try:
        log = run_in_process(job, on_tensor)
        if log.error:
            raise _failure(source, log.error)
        outputs = () if target is None or dry_run else _publish(partial, target, keep_split)
    except BaseException:
        for path in _written(partial, keep_split):
            path.unlink(missing_ok=True)
        raise
    seconds = time.monotonic() - started
    return OracleReport(outputs, tuple(log.tensors), log.fallbacks, tuple(log.warnings), log.needs_imatrix, seconds)


def run_in_process(job: StockJob, on_tensor: OnTensor | None = None) -> StockLog:
    """Run a job in a process of its own; it ends with this call, whatever happens.

    Raises EngineError when llama.cpp ended the process, with its last words.
    """
    command = [sys.executable, "-c", f"from {__name__} import serve; serve()"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    last_words: list[bytes] = []
    reader = threading.Thread(target=lambda: last_words.extend(_pipe(worker.stderr)), daemon=True)
    reader.start()
    try:
        # The pipe stays open while the job runs: the worker ends itself when it closes.
        pickle.dump(job, _pipe(worker.stdin))
        _pipe(worker.stdin).flush()
        for line in _pipe(worker.stdout):
            message = json.loads(line)
            if "result" in message:
                return _log_from_json(message["result"])
            if "failure" in message:
                raise EngineError(message["failure"])
            if on_tensor:
                on_tensor(*message["tensor"])
    except BrokenPipeError:
        pass
    finally:
        worker.kill()
        worker.wait()
        reader.join()
        for pipe in (worker.stdin, worker.stdout, worker.stderr):
            _close(_pipe(pipe))
    words = [line for line in b"".join(last_words).decode("utf-8", "replace").splitlines() if line.strip()]
    reason = next((line for line in words if "GGML_ASSERT" in line or "Error" in line), "")
    raise EngineError(f"llama.cpp's quantizer ended without a result on {job.source}: {reason or 'no reason given'}")


def serve() -> None:
    """Run the job that comes in over standard input; print its progress and result as lines of JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(message: Mapping[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")

    job = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        log = run_stock(job, lambda *event: tell({"tensor": event}))
        tell({"result": asdict(log)})
    except MoeGgufError as error:
        tell({"failure": str(error)})
    channel.flush()
    os._exit(0)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _close(pipe: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):
        pipe.close()


def _log_from_json(result: Mapping[str, Any]) -> StockLog:
    tensors = [
        StockTensor(
            row["name"],
            tuple(row["shape"]),
            GGMLQuantizationType(row["source_qtype"]),
            GGMLQuantizationType(row["qtype"]),
        )
        for row in result["tensors"]
    ]
    fallbacks = {name: GGMLQuantizationType(qtype) for name, qtype in result["fallbacks"].items()}
    return StockLog(tensors, fallbacks, result["warnings"], result["error"], result["needs_imatrix"])


def _check_paths(source: Path, target: Path | None, dry_run: bool) -> None:
    if not source.is_file():
        raise GgufError(f"{source}: no such file")
    if dry_run:
        return
    if target is None:
        raise OutputError("a target is needed when this is not a dry run")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: its folder does not exist")
    if target.exists() and target.samefile(source):
        raise OutputError(f"{target}: source and target are the same file")


def _failure(source: Path, reason: str) -> MoeGgufError:
    if "imatrix" in reason or "importance matrix" in reason:
        return ImatrixError(f"{source}: {reason}")
    if "requantizing" in reason:
        return PlanError(f"{source}: {reason}; --allow-requantize allows it, at a loss of quality")
    return EngineError(f"{source}: llama.cpp cannot quantize it: {reason}")


def _partial_name(target: Path, keep_split: bool) -> Path:
    # With keep_split llama.cpp appends -00001-of-00003.gguf itself.
    return target.with_name(f"{target.name.removesuffix('.gguf') if keep_split else target.name}.partial")


def _written(partial: Path, keep_split: bool) -> list[Path]:
    if partial == Path(os.devnull):
        return []
    if not keep_split:
        return [partial]
    return sorted(
        path
        for path in partial.parent.iterdir()
        if (match := SPLIT_NAME.match(path.name)) and match["stem"] == partial.name
    )


def _publish(partial: Path, target: Path, keep_split: bool) -> tuple[Path, ...]:
    """Give what was written its final names and return them."""
    written = _written(partial, keep_split)
    finals = [
        path.with_name(path.name.replace(partial.name, partial.name.removesuffix(".partial"), 1)) for path in written
    ]
    for path, final in zip(written, finals, strict=True):
        os.replace(path, final)
    return tuple(finals)
