"""Which experts a model chose for every token of a text, and how often another one chooses the same."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..formats.errors import EngineError
from ..formats.gguf_file import GgufFile
from ..runner.tap import Tap
from .routing import CHOICES


class Routing:
    """Listens to the experts that a model chooses; give `tap.callback` to an Engine.

    `window()` returns what was chosen since it was called last: by layer, sorted experts uint8 or int16 [token, k].
    """

    def __init__(self, n_expert: int) -> None:
        self._dtype = np.uint8 if n_expert <= 256 else np.int16
        self._parts: dict[int, list[np.ndarray]] = {}
        self.tap = Tap(lambda name: name.startswith(CHOICES), self._chosen)

    def _chosen(self, name: str, chosen: np.ndarray) -> None:
        experts = np.sort(chosen.reshape(-1, chosen.shape[-1]), axis=1).astype(self._dtype)
        self._parts.setdefault(int(name.removeprefix(CHOICES)), []).append(experts)

    def window(self) -> dict[int, np.ndarray]:
        """Return the choices since the last call, by layer."""
        self.tap.raise_error()
        found = {layer: np.concatenate(parts) for layer, parts in sorted(self._parts.items())}
        self._parts = {}
        return found


class Agreement:
    """Counts tokens whose set of experts is the base's, by layer."""

    def __init__(self) -> None:
        self._same: dict[int, int] = {}
        self._tokens: dict[int, int] = {}

    def add(self, base: dict[int, np.ndarray], ours: dict[int, np.ndarray]) -> None:
        """Compare the choices for the same tokens; layers that only one of them routes in count as different."""
        for layer in base.keys() | ours.keys():
            theirs, mine = base.get(layer), ours.get(layer)
            n_token = len(theirs if theirs is not None else mine if mine is not None else ())
            alike = theirs is not None and mine is not None and theirs.shape == mine.shape
            same = int((theirs == mine).all(axis=1).sum()) if alike and theirs is not None else 0
            self._same[layer] = self._same.get(layer, 0) + same
            self._tokens[layer] = self._tokens.get(layer, 0) + n_token

    @property
    def layers(self) -> list[float]:
        """The share of tokens with the same set of experts, for each layer that routes."""
        return [self._same[layer] / max(self._tokens[layer], 1) for layer in sorted(self._tokens)]

    @property
    def value(self) -> float:
        """The share over all layers."""
        return sum(self._same.values()) / max(sum(self._tokens.values()), 1)


def routes(file: GgufFile) -> bool:
    """Tell whether a model has routers."""
    return any(".ffn_gate_inp." in name for name in file.tensors)


def choices_path(logits: Path) -> Path:
    """Return where the choices of experts that belong to stored logits lie."""
    return logits.with_name(logits.name + ".routing.npz")


def save_choices(choices: Mapping[int, Mapping[int, np.ndarray]], logits: Path) -> None:
    """Keep the choices of every window beside stored logits."""
    named = {f"{chunk}.{layer}": array for chunk, layers in choices.items() for layer, array in layers.items()}
    np.savez(choices_path(logits), allow_pickle=False, **named)


def load_choices(logits: Path) -> dict[int, dict[int, np.ndarray]]:
    """Return the choices that were kept beside stored logits, by window and layer; nothing where there are none."""
    path = choices_path(logits)
    if not path.is_file():
        return {}
    choices: dict[int, dict[int, np.ndarray]] = {}
    try:
        with np.load(path, allow_pickle=False) as found:
            for name in found.files:
                chunk, _, layer = name.partition(".")
                choices.setdefault(int(chunk), {})[int(layer)] = found[name]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise EngineError(f"{path}: broken ({error}); remove it, and routing is not compared") from None
    return choices
