"""Error feedback: each column of a row is rounded after the errors of the columns before it were made up for.

Lanes are rows: LANES rows go through one segment of columns together, block by block of the type in the order that
the factor gives. What is computed for a lane does not depend on its neighbours, so slabs and threads do not matter.
"""

import numpy as np

from ..kernels.jit import inlined
from ..kernels.tiles import aligned, from_lanes, to_lanes, widen
from ..kernels.vectors import LANES, load, multiply_add, select, splat, store
from .descent import PANEL, panel_at, refine


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
def gather(block, order, position, panel):
    for j in range(PANEL):
        store(panel, j * LANES, load(block, order[position + j] * LANES, LANES))


@inlined
def round_columns(x, y, errors, weighted, weights, coefficients, order, position, start, steps, spacing, panel, out):
    """Round PANEL columns, one after the other; writes their errors and, to `out`, their levels.

    To `weighted` goes what rounding left of the corrected columns, times their `weights`.
    """
    n_sub, lowest, highest, to_level = spacing
    gather(y, order, position, panel)
    at = panel_at(position)
    correct(panel, errors, coefficients, at, start, position)
    for j in range(PANEL):
        v = load(panel, j * LANES, LANES)
        column = order[position + j]
        step = load(steps, column // n_sub * LANES, LANES)
        offset = load(steps, (16 + column // n_sub) * LANES, LANES)
        level = to_level((v + offset) / step, lowest, highest)
        level = select(step == 0, 0, level)
        rounded = step * level - offset
        error = load(x, column * LANES, LANES) - rounded
        store(weighted, (position + j) * LANES, (v - rounded) * load(weights, column * LANES, LANES))
        store(out, column * LANES, level)
        store(errors, (position + j) * LANES, error)
        row = at + (position + j) * PANEL
        for i in range(j + 1, PANEL):
            store(panel, i * LANES, multiply_add(error, coefficients[row + i], load(panel, i * LANES, LANES)))


@inlined
def correct_block(x, errors, coefficients, order, start, stop, panel, y):
    """Write to y the block at positions [start, stop) of x after making up for the errors before it."""
    for position in range(start, stop, PANEL):
        gather(x, order, position, panel)
        correct(panel, errors, coefficients, panel_at(position), 0, start)
        for j in range(PANEL):
            store(y, order[position + j] * LANES, load(panel, j * LANES, LANES))


@inlined
def mark(valid, flags, first, n_rows, doubtful):
    """Mark the rows whose lane is not valid."""
    store(flags, 0, select(valid, splat(0, LANES), 1))
    for lane in range(min(LANES, n_rows - first)):
        if flags[lane] != 0:
            doubtful[first + lane] = 1


@inlined
def round_rows(search, pack, block, n_sub, lowest, highest, n_bytes, to_level, given):
    """Encode columns [start, start + n) of rows: `search` finds the scales of a block, `pack` writes one, `to_level`
    gives the nearest levels to numbers.

    `given` is what each type's kernel is called with, in one piece: Numba passes on a tuple, and functions beside it
    stay what LLVM can put in place (with star arguments they would become pointers).

    `order` holds per position its column within its block, `order[n:]` the blocks in the order of their turn.
    `costs` float32 [n] are what errors of columns count, `hessian` [n * n] is H by positions; after `sweeps` over all
    levels, each moved to where it does best, the row is packed.
    """
    source, kind, n_rows, row_length, start, n, order, coefficients, costs, hessian, sweeps, out, doubtful = given
    spacing = n_sub, lowest, highest, to_level
    tile, x, y = aligned(block * LANES), aligned(block * LANES), aligned(block * LANES)
    levels, weights, panel = aligned(n * LANES), aligned(block * LANES), aligned(PANEL * LANES)
    scratch, flags = aligned(64 * LANES), aligned(LANES)
    shape = (10, 16 * LANES) if block > 32 else (1, 3 * LANES)
    n_found = shape[0] * shape[1]
    founds, steps = aligned(n // block * n_found), aligned(n // block * 32 * LANES)
    halves = np.empty(n // block * 2 * LANES, np.int32)
    errors, weighted = aligned(n * LANES), aligned(n * LANES)
    memory = aligned(3 * n * LANES + n if sweeps else 0)
    for first in range(0, n_rows, LANES):
        for turn in range(n // block):
            column = order[n + turn] * block
            found = founds[turn * n_found : (turn + 1) * n_found].reshape(shape)
            load_columns(source, kind, row_length, first, n_rows, start + column, block, tile, x)
            for i in range(block):
                store(weights, i * LANES, splat(costs[column + i], LANES))
            begin, end = turn * block, (turn + 1) * block
            correct_block(x, errors, coefficients, order, begin, end, panel, y)
            own_steps = steps[turn * 32 * LANES : (turn + 1) * 32 * LANES]
            valid = search(y, weights, scratch, found, own_steps, halves[turn * 2 * LANES :])
            mark(valid, flags, first, n_rows, doubtful)
            for position in range(begin, end, PANEL):
                own = levels[column * LANES :]
                round_columns(
                    x,
                    y,
                    errors,
                    weighted,
                    weights,
                    coefficients,
                    order,
                    position,
                    begin,
                    own_steps,
                    spacing,
                    panel,
                    own,
                )
        if sweeps:
            refine(levels, steps, weighted, order, coefficients, hessian, n, block, spacing, sweeps, memory)
        for turn in range(n // block):
            column = order[n + turn] * block
            found = founds[turn * n_found : (turn + 1) * n_found].reshape(shape)
            from_lanes(levels[column * LANES :], block, tile, 0, block)
            for lane in range(min(LANES, n_rows - first)):
                at = (first + lane) * (row_length // block) * n_bytes + (start + column) // block * n_bytes
                half_d, half_m = halves[2 * turn * LANES + lane], halves[(2 * turn + 1) * LANES + lane]
                pack(tile, found, lane, half_d, half_m, out, at)
