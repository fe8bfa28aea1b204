"""What `compare` found out: the base, each variant, and the stable JSON of both (docs/measure.md)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..measure.agreement import Agreement
from ..measure.answers import Answer, Divergent
from ..measure.divergence import Divergence


@dataclass(frozen=True)
class BaseReport:
    """The base: its perplexity, the divergence from its own stored predictions (None where it was not read)."""

    path: Path
    ppl: float
    noise_floor: float | None
    tokens_per_second: float | None
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True)
class VariantReport:
    """A variant: divergence in all and by text, agreement of routing (None for dense models), size, tokens a second."""

    path: Path
    n_bytes: int
    bits_per_weight: float
    divergence: Divergence
    texts: dict[str, Divergence]
    routing: Agreement | None
    prompt_per_second: float
    generated_per_second: float | None
    answers: tuple[Divergent, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the stable JSON of one variant (docs/measure.md)."""
        routing = self.routing and {"agreement": self.routing.value, "layers": self.routing.layers}
        speed = {"prompt_per_second": round(self.prompt_per_second, 2)}
        if self.generated_per_second is not None:
            speed["generated_per_second"] = round(self.generated_per_second, 2)
        report = {
            "path": str(self.path),
            "bytes": self.n_bytes,
            "bpw": round(self.bits_per_weight, 4),
            **self.divergence.as_json(),
            "routing": routing,
            "texts": {name: one.as_json() for name, one in self.texts.items()},
            "speed": speed,
        }
        return report | ({"answers": [one.as_json() for one in self.answers]} if self.answers else {})


@dataclass(frozen=True)
class Report:
    """All of it."""

    base: BaseReport
    variants: tuple[VariantReport, ...]
    n_chunk: int
    n_token: int

    def as_json(self) -> dict[str, Any]:
        """Return what `compare --json` prints (docs/measure.md)."""
        base: dict[str, Any] = {"path": str(self.base.path), "ppl": self.base.ppl}
        if self.base.answers:
            base["answers"] = [one.as_json() for one in self.base.answers]
        floor = self.base.noise_floor
        return {
            "base": base,
            "noise_floor": {"kld_mean": floor} if floor is not None else None,
            "variants": [variant.as_json() for variant in self.variants],
            "n_chunks": self.n_chunk,
            "n_tokens": self.n_token,
        }
