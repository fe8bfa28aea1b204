"""How evenly experts are used: tokens per expert and layer come in, statistics go out."""

from dataclasses import dataclass

import numpy as np

from .routing import Routes

CAPACITIES = (1.0, 1.25, 2.0)


@dataclass(frozen=True)
class Load:
    """Statistics of how many tokens each expert got; per layer, or means over layers.

    - cv: standard deviation over mean of the experts' tokens, mean over layers.
    - busiest, dead: (layer, expert) with the largest part of a layer's tokens, and those that no token reached.
    - entropy: of the shares, 1 when all are equal, mean over layers.
    - aux_loss: n_expert sum f_i P_i, f the part of choices and P the routers' mean probability, 1 when balanced; mean
      over layers (Switch Transformers, equation 4); None where only counts are known.
    - dropped: the part of choices that an expert capacity of so many times the mean would have dropped, all tokens
      being one batch.
    """

    cv: float
    busiest: tuple[int, int, float]
    dead: tuple[tuple[int, int], ...]
    entropy: float
    aux_loss: float | None
    dropped: dict[float, float]
    layers: tuple[tuple[float, float], ...]

    def as_json(self) -> dict[str, object]:
        """Return what `routes --json` has under load."""
        layer, expert, share = self.busiest
        return {
            "cv": self.cv,
            "aux_loss": self.aux_loss,
            "dead": [{"layer": at, "expert": which} for at, which in self.dead],
            "busiest": {"layer": layer, "expert": expert, "share": share},
            "entropy": self.entropy,
            "dropped": {str(capacity): part for capacity, part in self.dropped.items()},
            "layers": [{"cv": cv, "entropy": entropy} for cv, entropy in self.layers],
        }


def load_of(layers: tuple[int, ...], tokens: np.ndarray, probabilities: np.ndarray | None = None) -> Load:
    """Return the statistics of tokens [n_layer, n_expert]."""
    counts = tokens.astype(np.float64)
    n_expert = counts.shape[1]
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cv = counts.std(axis=1) / np.maximum(counts.mean(axis=1), 1e-30)
    logs = np.log(parts, out=np.zeros_like(parts), where=parts > 0)
    entropy = -(parts * logs).sum(axis=1) / (np.log(n_expert) if n_expert > 1 else 1)
    row, expert = np.unravel_index(int(parts.argmax()), parts.shape)
    dropped = {
        capacity: float(np.maximum(parts - np.minimum(capacity / n_expert, 1), 0).sum(axis=1).mean())
        for capacity in CAPACITIES
    }
    aux = None if probabilities is None else float((n_expert * (parts * probabilities).sum(axis=1)).mean())
    dead = tuple((layers[i], int(e)) for i, e in zip(*np.nonzero(tokens == 0), strict=True))
    per_layer = tuple(zip(map(float, cv), map(float, entropy), strict=True))
    busiest = (layers[int(row)], int(expert), float(parts[row, expert]))
    return Load(float(cv.mean()), busiest, dead, float(entropy.mean()), aux, dropped, per_layer)


def coactivation(routes: Routes) -> np.ndarray:
    """Return the part of tokens that went to both of two experts, mean over layers, float64 [n_expert, n_expert]."""
    total = np.zeros((routes.n_expert, routes.n_expert))
    for chosen in routes.experts:
        used = np.zeros((routes.n_token, routes.n_expert), np.float32)
        np.put_along_axis(used, chosen, 1, axis=1)
        total += used.T @ used
    return total / (routes.n_token * len(routes.layers))
