"""Coordinate descent after feedback: levels and scales move on while that brings a row's outputs nearer.

Feedback rounds a column once, for later columns that it does not know yet. Afterwards all are known, and with

    g = H e    e: the errors of the columns, exact minus rounded

a level that moves by m steps s changes the squared error of the outputs e^T H e by m s (m s H_jj - 2 g_j): it is least
at the level nearest to its own plus g_j / (s H_jj). Few levels move, 2 to 4 % in three sweeps, and only for those g
changes, by a row of H.
"""

import numpy as np

from ..kernels.jit import inlined
from ..kernels.search import clamp
from ..kernels.tiles import from_lanes
from ..kernels.vectors import LANES, any_lane, load, multiply_add, nearest, select, splat, store

# Columns that are corrected together: their sums stay in registers.
PANEL = 8
WIDE = 16
# Rows of g that stay in the first cache while the panels go by.
TILE = 64


@inlined
def panel_at(position):
    """Return where the coefficients of the panel at a position begin: panel q has 8 q + 8 rows of 8."""
    q = position // PANEL
    return PANEL * PANEL * (q * (q + 1) // 2)


@inlined
def gradients(weighted, coefficients, n, g):
    """Write g [n, LANES] = R^T times `weighted` [n, LANES], R_jj^2 times what rounding left of each column."""
    for position in range(0, n * LANES, LANES):
        store(g, position, load(weighted, position, LANES))
    for start in range(0, n, TILE):
        for first in range(start, n, PANEL):
            w0, w1 = load(weighted, first * LANES, LANES), load(weighted, (first + 1) * LANES, LANES)
            w2, w3 = load(weighted, (first + 2) * LANES, LANES), load(weighted, (first + 3) * LANES, LANES)
            w4, w5 = load(weighted, (first + 4) * LANES, LANES), load(weighted, (first + 5) * LANES, LANES)
            w6, w7 = load(weighted, (first + 6) * LANES, LANES), load(weighted, (first + 7) * LANES, LANES)
            at = panel_at(first)
            for k in range(start, min(start + TILE, first + PANEL)):
                i = at + k * PANEL
                total = multiply_add(w0, coefficients[i], load(g, k * LANES, LANES))
                total = multiply_add(w1, coefficients[i + 1], total)
                total = multiply_add(w2, coefficients[i + 2], total)
                total = multiply_add(w3, coefficients[i + 3], total)
                total = multiply_add(w4, coefficients[i + 4], total)
                total = multiply_add(w5, coefficients[i + 5], total)
                total = multiply_add(w6, coefficients[i + 6], total)
                total = multiply_add(w7, coefficients[i + 7], total)
                store(g, k * LANES, total)


@inlined
def subtract(g, hessian, row, factor, n):
    """Take `factor` times a row of H from g [n]."""
    for k in range(0, n, WIDE):
        store(g, k, multiply_add(load(hessian, row * n + k, WIDE), -factor, load(g, k, WIDE)))


@inlined
def descend(levels, steps, g, hessian, diagonal, first, n, lowest, highest, to_level):
    """Move WIDE levels of one row, from `first` on, to where the error of the row's outputs is least."""
    moves = np.empty(WIDE, np.float32)
    step = load(steps, first, WIDE)
    curvature = step * load(diagonal, first, WIDE)
    for _ in range(WIDE):
        level = load(levels, first, WIDE)
        wanted = to_level(level + load(g, first, WIDE) / curvature, lowest, highest)
        move = select(step == 0, splat(0, WIDE), wanted - level)
        if not any_lane(move != 0):
            break
        store(moves, 0, move)
        # The move that gains most goes first: with it the others' gains change.
        best, most = 0, np.float32(0)
        for i in range(WIDE):
            change = moves[i] * steps[first + i]
            gain = change * (2 * g[first + i] - change * diagonal[first + i])
            if gain > most:
                best, most = i, gain
        if most <= 0:
            break
        levels[first + best] += moves[best]
        subtract(g, hessian, first + best, moves[best] * steps[first + best], n)


@inlined
def to_integer(value, lowest, highest):
    """Return the nearest integers within [lowest, highest]."""
    return clamp(nearest(value), lowest, highest)


@inlined
def refine(levels, steps, weighted, order, coefficients, hessian, n, block, spacing, sweeps, memory):
    """Improve the levels [n, LANES] (columns in their own order, block by block) of LANES rows.

    `steps` are [n / block, 32, LANES] as the searches left them, `memory` scratch for 3 n LANES + n float32. All rows
    go through WIDE columns before the next, for which few rows of H are needed at a time.
    """
    n_sub, lowest, highest, to_level = spacing
    size = n * LANES
    lanes, g, own_steps, diagonal = (
        memory[:size],
        memory[size : 2 * size],
        memory[2 * size : 3 * size],
        memory[3 * size :],
    )
    gradients(weighted, coefficients, n, lanes)
    from_lanes(lanes, n, g, 0, n)
    own = lanes
    for position in range(n):
        diagonal[position] = hessian[position * n + position]
    for turn in range(n // block):
        for lane in range(LANES):
            for position in range(turn * block, (turn + 1) * block):
                column = order[position]
                own[lane * n + position] = levels[(order[n + turn] * block + column) * LANES + lane]
                own_steps[lane * n + position] = steps[(turn * 32 + column // n_sub) * LANES + lane]
    for _ in range(sweeps):
        for first in range(0, n, WIDE):
            for lane in range(LANES):
                row = slice(lane * n, lane * n + n)
                descend(own[row], own_steps[row], g[row], hessian, diagonal, first, n, lowest, highest, to_level)
    for turn in range(n // block):
        for lane in range(LANES):
            for position in range(turn * block, (turn + 1) * block):
                levels[(order[n + turn] * block + order[position]) * LANES + lane] = own[lane * n + position]
