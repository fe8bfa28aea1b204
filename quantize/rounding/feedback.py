"""Error feedback: each column of a row is rounded after the errors of the columns before it were made up for.

Lanes are rows: LANES rows go through one segment of columns together, block by block of the type in the order that
the factor gives. What is computed for a lane does not depend on its neighbours, so slabs and threads do not matter.
"""

import numpy as np

from ..kernels.jit import inlined
from ..kernels.search import clamp
from ..kernels.tiles import aligned, from_lanes, to_lanes, widen
from ..kernels.vectors import LANES, load, multiply_add, nearest, select, splat, store

# Columns that are corrected together: their sums stay in registers.
PANEL = 8


@inlined
def load_columns(source, kind, row_length, first, n_rows, column, n, tile, lanes):
    """Fill `lanes` [n, LANES] with n columns of LANES rows from row `first` on; past the end the last is repeated."""
    for lane in range(LANES):
        row = min(first + lane, n_rows - 1)
        widen(source, kind, row * row_length + column, n, tile, lane * n)
    to_lanes(tile, n, lanes)


@inlined
def correct(panel, errors, coefficients, at, start, stop):
    """Add to a panel [PANEL, LANES] the errors of positions [start, stop) times their coefficients [., PANEL]."""
    a0, a1 = load(panel, 0, LANES), load(panel, LANES, LANES)
    a2, a3 = load(panel, 2 * LANES, LANES), load(panel, 3 * LANES, LANES)
    a4, a5 = load(panel, 4 * LANES, LANES), load(panel, 5 * LANES, LANES)
    a6, a7 = load(panel, 6 * LANES, LANES), load(panel, 7 * LANES, LANES)
    for k in range(start, stop):
        error = load(errors, k * LANES, LANES)
        i = at + k * PANEL
        a0 = multiply_add(error, coefficients[i], a0)
        a1 = multiply_add(error, coefficients[i + 1], a1)
        a2 = multiply_add(error, coefficients[i + 2], a2)
        a3 = multiply_add(error, coefficients[i + 3], a3)
        a4 = multiply_add(error, coefficients[i + 4], a4)
        a5 = multiply_add(error, coefficients[i + 5], a5)
        a6 = multiply_add(error, coefficients[i + 6], a6)
        a7 = multiply_add(error, coefficients[i + 7], a7)
    store(panel, 0, a0)
    store(panel, LANES, a1)
    store(panel, 2 * LANES, a2)
    store(panel, 3 * LANES, a3)
    store(panel, 4 * LANES, a4)
    store(panel, 5 * LANES, a5)
    store(panel, 6 * LANES, a6)
    store(panel, 7 * LANES, a7)


@inlined
def panel_at(position):
    """Return where the coefficients of the panel at a position begin: panel q has 8 q + 8 rows of 8."""
    q = position // PANEL
    return PANEL * PANEL * (q * (q + 1) // 2)


@inlined
def gather(block, order, position, panel):
    for j in range(PANEL):
        store(panel, j * LANES, load(block, order[position + j] * LANES, LANES))


@inlined
def round_columns(x, y, errors, coefficients, order, position, block_start, steps, n_sub, lowest, highest, panel, out):
    """Round PANEL columns, one after the other; writes their errors and, to `out`, their levels."""
    gather(y, order, position, panel)
    at = panel_at(position)
    correct(panel, errors, coefficients, at, block_start, position)
    for j in range(PANEL):
        v = load(panel, j * LANES, LANES)
        column = order[position + j]
        step = load(steps, column // n_sub * LANES, LANES)
        offset = load(steps, (16 + column // n_sub) * LANES, LANES)
        level = clamp(nearest((v + offset) / step), lowest, highest)
        level = select(step == 0, 0, level)
        error = load(x, column * LANES, LANES) - (step * level - offset)
        store(out, column * LANES, level)
        store(errors, (position + j) * LANES, error)
        row = at + (position + j) * PANEL
        for i in range(j + 1, PANEL):
            store(panel, i * LANES, multiply_add(error, coefficients[row + i], load(panel, i * LANES, LANES)))


@inlined
def round_rows(
    source,
    kind,
    n_rows,
    row_length,
    start,
    n,
    order,
    coefficients,
    importance,
    sigmas,
    out,
    doubtful,
    search,
    pack,
    block,
    n_sub,
    lowest,
    highest,
    n_bytes,
):
    """Encode columns [start, start + n) of rows: `search` finds the scales of a block, `pack` writes one.

    `order` holds per position its column within its block, `order[n:]` the blocks in the order of their turn.
    `importance` is float32 [n]; `sigmas` the mean square of each row.
    """
    tile, x, y = aligned(block * LANES), aligned(block * LANES), aligned(block * LANES)
    levels, weights, panel = aligned(block * LANES), aligned(block * LANES), aligned(PANEL * LANES)
    scratch, found = aligned(64 * LANES), aligned(10 * 16 * LANES).reshape(10, 16 * LANES)
    steps, halves, flags = aligned(32 * LANES), np.empty(2 * LANES, np.int32), aligned(LANES)
    errors = aligned(n * LANES)
    for first in range(0, n_rows, LANES):
        for lane in range(LANES):
            flags[lane] = sigmas[min(first + lane, n_rows - 1)]
        sigma2 = load(flags, 0, LANES)
        for turn in range(n // block):
            column = order[n + turn] * block
            load_columns(source, kind, row_length, first, n_rows, start + column, block, tile, x)
            for i in range(block):
                store(weights, i * LANES, splat(importance[column + i], LANES))
            for position in range(turn * block, (turn + 1) * block, PANEL):
                gather(x, order, position, panel)
                correct(panel, errors, coefficients, panel_at(position), 0, turn * block)
                for j in range(PANEL):
                    store(y, order[position + j] * LANES, load(panel, j * LANES, LANES))
            valid = search(y, weights, sigma2, scratch, found, steps, halves)
            store(flags, 0, select(valid, splat(0, LANES), 1))
            for lane in range(min(LANES, n_rows - first)):
                if flags[lane] != 0:
                    doubtful[first + lane] = 1
            for position in range(turn * block, (turn + 1) * block, PANEL):
                round_columns(
                    x,
                    y,
                    errors,
                    coefficients,
                    order,
                    position,
                    turn * block,
                    steps,
                    n_sub,
                    lowest,
                    highest,
                    panel,
                    levels,
                )
            from_lanes(levels, block, tile, 0, block)
            for lane in range(min(LANES, n_rows - first)):
                at = (first + lane) * (row_length // block) * n_bytes + (start + column) // block * n_bytes
                pack(tile, found, lane, halves[lane], halves[LANES + lane], out, at)
