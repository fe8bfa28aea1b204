"""What `llama-imatrix --show-statistics` prints of an importance matrix: sums and counts in, its two tables out.

Source: compute_statistics, compute_cossim and show_statistics of tools/imatrix/imatrix.cpp, in single precision too.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

INACTIVE = np.float32(1e-5)
Entries = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Row:
    """Mean squared inputs of one matrix over all its experts, `cossim` with those of the layer before."""

    layer: str
    name: str
    total: float
    least: float
    most: float
    mean: float
    deviation: float
    active: float
    n: int
    entropy: float
    zd: float
    cossim: float


def statistics_rows(entries: Entries) -> list[Row]:
    """Return the rows in llama-imatrix's order: by name, the largest sum first."""
    rows = [row for name in entries if (row := _row(name, entries)) is not None]
    return sorted(rows, key=lambda row: (row.name, -row.total))


def _row(name: str, entries: Entries) -> Row | None:
    sums, counts = entries[name]
    seen = counts > 0
    values = (sums[seen] / counts[seen].astype(np.float32)[:, None]).astype(np.float32).ravel()
    if not values.size:
        return None
    n, total = values.size, _sum(values)
    mean = total / np.float32(n)
    variance = _sum(values * values) / np.float32(n) - mean * mean
    deviation = np.sqrt(max(np.float32(0), variance))
    entropy = np.float32(0)
    if total > 0:
        parts = (values / total)[values > 0]
        entropy = _sum(-parts * np.log2(parts))
    above = int(((values - mean) / deviation > 1).sum()) if deviation > 0 else 0
    parts = name.split(".")
    layer = next((parts[i + 1] for i in range(len(parts) - 1) if parts[i] == "blk"), "-")
    tensor = next((parts[i - 1] for i in range(1, len(parts)) if parts[i] == "weight"), name)
    active = 1 - float((np.abs(values) <= INACTIVE).sum()) / n
    numbers = (float(total), float(values.min()), float(values.max()), float(mean), float(deviation), active)
    return Row(layer, tensor, *numbers, n, float(entropy), above / n, _cossim(name, entries))


def _cossim(name: str, entries: Entries) -> float:
    """Return the cosine between a matrix's sums and those of the same matrix one layer before; 0 without one."""
    match = re.search(r"blk\.(\d+)\.", name)
    before = match and name[: match.start(1)] + str(int(match[1]) - 1) + name[match.end(1) :]
    if not before or before not in entries:
        return 0.0
    ours, theirs = entries[name][0].ravel(), entries[before][0].ravel()
    if ours.size != theirs.size:
        return 0.0
    size = np.sqrt(_sum(ours * ours)) * np.sqrt(_sum(theirs * theirs))
    return float(_sum(ours * theirs) / size) if size else float("nan")


def _sum(values: np.ndarray) -> np.float32:
    """Add single-precision values one after the other, as a loop in C does."""
    return np.add.accumulate(values.astype(np.float32, copy=False))[-1]


def statistics_table(path: str, entries: Entries) -> str:
    """Return both tables as llama-imatrix prints them."""
    rows = statistics_rows(entries)
    heads = (" Layer", "       Tensor", "          Σ(Act²)", "  Min", "            Max", "           μ", "   σ")
    heads += (" % Active", "N", "   Entropy", "E (norm)", "ZD", "  CosSim")
    lines = ["", f"Computing statistics for {path} ({len(rows)} tensors)", "", "\t".join(heads), "=" * 169]
    for row in rows:
        norm = 100 * row.entropy / np.log2(row.n) if row.n > 1 else float("nan")
        lines.append(
            f"{row.layer:>5}\t{row.name:<20}\t{row.total:10.2f}\t{row.least:8.4f}\t{row.most:11.4f}\t{row.mean:6.2f}\t"
            f"{row.deviation:6.2f}\t{100 * row.active:8.2f}%\t{row.n:6d}\t{row.entropy:10.4f}\t{norm:6.2f}%\t"
            f"{100 * row.zd:10.2f}%\t{row.cossim:8.4f}"
        )
    layers = sorted({int(row.layer) for row in rows if row.layer.isdecimal()})
    lines += ["", f"Computing weighted average statistics per layer ({len(layers)} layers)", ""]
    lines += ["\t".join(("  Layer", "     μΣ(Act²)", "      μZD", "μCosSim")), "=" * 48]
    for layer in layers:
        own = [row for row in rows if row.layer == str(layer)]
        n = sum(row.n for row in own)
        total, zd, cossim = (
            sum(row.n * value(row) for row in own) / n
            for value in (lambda row: row.total, lambda row: row.zd, lambda row: row.cossim)
        )
        lines.append(f"{layer:5d}\t{total:14.2f}\t{100 * zd:10.4f}%\t{cossim:6.4f}")
    return "\n".join([*lines, ""])
