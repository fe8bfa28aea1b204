"""POST /v1/embeddings: texts in, one vector each out: the mean of the last layer's outputs, with the length 1."""

import base64
import ctypes
from typing import Any

import anyio.to_thread
import numpy as np

from ..formats.llamacpp import llama
from ..runner.engine import Engine
from ..runner.load_options import LoadOptions
from ..runner.model import Model
from .errors import ApiError
from .prompts import prompts_of
from .requests import EmbeddingRequest
from .service import Service

Json = dict[str, Any]


class Embedder:
    """A context beside the one that answers, made when the first vector is wanted; for the thread that computes."""

    def __init__(self, model: Model, n_ctx: int, n_threads: int) -> None:
        """Make the context. Raises EngineError when it does not fit."""
        self._engine = Engine(model, LoadOptions(n_ctx=n_ctx, n_batch=512, n_ubatch=512, n_threads=n_threads))
        self.n_batch = self._engine.n_batch
        self._n_embd = llama().llama_model_n_embd(model.pointer)
        llama().llama_set_embeddings(self._engine.pointer, True)

    def forget(self) -> None:
        """Begin a new text."""
        self._engine.forget(0)

    def summed(self, tokens: list[int]) -> np.ndarray:
        """Read at most n_batch more tokens of a text and return the sum of their outputs [n_embd]."""
        self._engine.decode_all(0, tokens)
        pointer = ctypes.cast(llama().llama_get_embeddings(self._engine.pointer), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, (len(tokens), self._n_embd)).sum(axis=0, dtype=np.float64)

    def close(self) -> None:
        """Free the context."""
        self._engine.close()


async def embeddings(request: EmbeddingRequest, service: Service) -> Json:
    """Return the vectors in OpenAI's form. Raises ApiError and EngineError."""
    prompts = await anyio.to_thread.run_sync(prompts_of, service.model, request.input, "input")
    n_ctx = service.engine.n_ctx_seq
    for prompt in prompts:
        if not 0 < len(prompt) <= n_ctx:
            raise ApiError(400, f"a text has {len(prompt)} tokens; 1 to {n_ctx} are possible", "input")
    found = []
    for number, prompt in enumerate(prompts):
        vector = await anyio.to_thread.run_sync(embedded, service, prompt)
        if request.dimensions:
            if request.dimensions > len(vector):
                raise ApiError(400, f"the vectors have {len(vector)} dimensions", "dimensions")
            vector = normalized(vector[: request.dimensions])
        data = vector.astype("<f4")
        spelled = base64.b64encode(data.tobytes()).decode() if request.encoding_format == "base64" else data.tolist()
        found.append({"object": "embedding", "index": number, "embedding": spelled})
    n_tokens = sum(map(len, prompts))
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"object": "list", "data": found, "model": service.name, "usage": usage}


def embedded(service: Service, tokens: list[int]) -> np.ndarray:
    """Return the vector of a text, read batch by batch so that answers go on between."""
    with service.embedding:
        embedder = service.scheduler.call(lambda: service.embedder(Embedder)).result()
        service.scheduler.call(embedder.forget).result()
        total: Any = 0.0
        for start in range(0, len(tokens), embedder.n_batch):
            stretch = tokens[start : start + embedder.n_batch]
            total = total + service.scheduler.call(lambda stretch=stretch: embedder.summed(stretch)).result()
    return normalized(total)


def normalized(vector: np.ndarray) -> np.ndarray:
    """Return a vector with the length 1."""
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector
