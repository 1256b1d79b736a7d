"""Slow and plain float64 versions of ZeMosaic's kernels, written from the published definitions."""

import itertools
import math

import numpy as np


def population_deviation(values):
    mean = sum(values) / len(values)
    return math.sqrt(max(sum((v - mean) ** 2 for v in values) / len(values), 0.0))


def kappa_survivors(values, low, high, iterations):
    """Iterated clip about the median with the survivors' standard deviation."""
    kept = sorted(values)
    for _ in range(iterations):
        if len(kept) < 3:
            break
        median, sigma = float(np.median(kept)), population_deviation(kept)
        left = [v for v in kept if median - low * sigma <= v <= median + high * sigma]
        if len(left) == len(kept):
            break
        kept = left
    return kept


def huber_sigma(values, limits):
    """Winsorised standard deviation, iterated at 1.5 sigma with the factor 1.134."""
    values = sorted(values)
    n = len(values)
    low, high = values[int(limits[0] * n)], values[n - 1 - int(limits[1] * n)]
    median = float(np.median(values))
    sigma = 1.134 * population_deviation([min(max(v, low), high) for v in values])
    for _ in range(50):
        before = sigma
        low, high = median - 1.5 * before, median + 1.5 * before
        sigma = 1.134 * population_deviation([min(max(v, low), high) for v in values])
        if abs(sigma - before) <= 0.0005 * before:
            break
    return sigma


def winsorized_survivors(values, low, high, iterations, limits):
    kept = sorted(values)
    for _ in range(iterations):
        if len(kept) < 3:
            break
        median, sigma = float(np.median(kept)), huber_sigma(kept, limits)
        left = [v for v in kept if median - low * sigma <= v <= median + high * sigma]
        if len(left) == len(kept):
            break
        kept = left
    return kept


def linear_fit_survivors(values, low, high, iterations):
    """Clip the ends of the sorted samples by residuals to a straight line, in mean absolute residuals."""
    kept = sorted(values)
    for _ in range(iterations):
        if len(kept) < 3:
            break
        slope, start = np.polyfit(np.arange(len(kept), dtype=float), kept, 1)
        residual = [v - (start + slope * r) for r, v in enumerate(kept)]
        size = sum(abs(r) for r in residual) / len(residual)
        first, last = 0, len(kept)
        while first < last and -residual[first] > low * size:
            first += 1
        while last > first and residual[last - 1] > high * size:
            last -= 1
        if last - first == len(kept):
            break
        kept = kept[first:last]
    return kept


CROUX_ROUSSEEUW = {2: 1.196, 3: 1.495, 4: 1.363, 5: 1.206, 6: 1.200, 7: 1.140, 8: 1.129, 9: 1.107}


def scaled_mad(values):
    median = float(np.median(values))
    n = len(values)
    factor = CROUX_ROUSSEEUW.get(n, n / (n - 0.8))
    return 1.482602218505602 * factor * float(np.median([abs(v - median) for v in values]))


def modelled_survivors(values, low, high, frames, step, bend, share, *, robust):
    """One clip about the median with the expected noise, or the `robust` spread if larger, and a steepness term.

    `frames` holds (sky variance, variance per unit of signal, level where signal begins, blur) of every sample's
    frame; `step` is the largest one to a neighbour, `bend` half the Laplacian.
    """
    if len(values) < 3:
        return list(values)
    median = float(np.median(values))
    signal = sum(photon * (median - level) for _, photon, level, _ in frames) / len(frames)
    variance = sum(sky for sky, _, _, _ in frames) / len(frames) + max(signal, 0.0)
    if robust:
        variance = max(variance, (scaled_mad(values) / (1 + 1.17 / math.sqrt(len(values)))) ** 2)
    median_variance = 0.5 * math.pi * variance / len(values)
    steep = max(step**2 - 2.5**2 * 2 * median_variance, 0.0)
    bent = max(bend**2 - 2.5**2 * 5 * median_variance, 0.0)
    blurs = [blur for _, _, _, blur in frames]
    curve = math.copysign(math.sqrt(bent), bend)
    centre = median - sum(blurs) / len(blurs) * curve
    sigma, room = math.sqrt(variance + share**2 * steep), 0.35 * (max(blurs) - min(blurs)) * abs(curve)
    held = [v - blur * curve for v, blur in zip(values, blurs, strict=True)]
    low, high = centre - low * sigma - room, centre + high * sigma + room
    return [v for v, h in zip(values, held, strict=True) if low <= h <= high]


def weighted_median(values, weights):
    """The middle of the interval on which the weights below and above balance."""
    pairs = sorted(zip(values, weights, strict=True))
    half, below = sum(weights) / 2, 0.0
    for k, (value, weight) in enumerate(pairs):
        below += weight
        if math.isclose(below, half, rel_tol=1e-12):
            return 0.5 * (value + pairs[k + 1][0])
        if below > half:
            return value
    return pairs[-1][0]


def lanczos3(plane, x, y):
    """Lanczos-3 value at a position well inside a plane without holes, clamped from below."""
    ix, iy = math.floor(x), math.floor(y)

    def weight(d):
        if d == 0:
            return 1.0
        return 3 * math.sin(math.pi * d) * math.sin(math.pi * d / 3) / (math.pi * d) ** 2 if abs(d) < 3 else 0.0

    total = norm = 0.0
    for j in range(iy - 2, iy + 4):
        for i in range(ix - 2, ix + 4):
            w = weight(x - i) * weight(y - j)
            total += w * float(plane[j, i])
            norm += w
    return max(total / norm, float(plane[iy - 1 : iy + 3, ix - 1 : ix + 3].min()))


def malvar(raw, bayer):
    """Malvar, He and Cutler's filters as 5 x 5 tables, applied by convolution with mirrored borders."""
    colour = {(j, i): bayer[2 * j + i] for j in (0, 1) for i in (0, 1)}
    green = np.zeros((5, 5))
    green[2], green[:, 2] = [-1, 2, 4, 2, -1], [-1, 2, 4, 2, -1]
    row = np.array([[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]])
    cross = np.array([[0, 2, 0, 2, 0]] * 5, dtype=float)
    cross[[0, 2, 4]] = 0
    cross[2], cross[:, 2] = [-1.5, 0, 6, 0, -1.5], [-1.5, 0, 6, 0, -1.5]
    green, row, cross = green / 8, row / 8, cross / 8
    ny, nx = raw.shape
    padded = np.pad(raw.astype(float), 2, mode="reflect")
    out = np.zeros((3, ny, nx))
    for y in range(ny):
        for x in range(nx):
            patch = padded[y : y + 5, x : x + 5]
            here, beside = colour[y % 2, x % 2], colour[y % 2, (x + 1) % 2]
            for c, name in enumerate("RGB"):
                if name == here:
                    value = raw[y, x]
                elif name == "G":
                    value = (patch * green).sum()
                elif here != "G":
                    value = (patch * cross).sum()
                else:
                    value = (patch * (row if name == beside else row.T)).sum()
                out[c, y, x] = value
    return out


def linked_groups(points, threshold_deg, kinds):
    """Friends of friends on the sphere by union and find over all pairs; every frame's smallest companion."""
    parent = list(range(len(points)))

    def root(k):
        while parent[k] != k:
            k = parent[k]
        return k

    for i in range(len(points)):
        for j in range(i):
            cross, dot = np.linalg.norm(np.cross(points[i], points[j])), points[i] @ points[j]
            if kinds[i] == kinds[j] and math.degrees(math.atan2(cross, dot)) <= threshold_deg:
                low, high = sorted((root(i), root(j)))
                parent[high] = low
    return [root(k) for k in range(len(points))]


def coinciding_stars(a, b, reach):
    """Pairs (i, j) of stars that the best of all similarities brings together, by trying every pair on every pair.

    `a` and `b` are complex places. The guess that brings most stars within `reach` is fitted anew, several times,
    to those that are each other's nearest.
    """
    best, most = None, 0
    for i1, i2 in itertools.permutations(range(len(a)), 2):
        for j1, j2 in itertools.combinations(range(len(b)), 2):
            turn = (b[j2] - b[j1]) / (a[i2] - a[i1])
            mapped = turn * (a - a[i1]) + b[j1]
            count = (np.abs(mapped[:, None] - b[None, :]).min(axis=1) <= reach * max(1.0, abs(turn))).sum()
            if count > most and 0.5 < abs(turn) < 2.0:
                most, best = count, (turn, b[j1] - turn * a[i1])
    turn, shift = best
    for _ in range(10):
        apart = np.abs((turn * a + shift)[:, None] - b[None, :])
        pairs = [
            (i, int(apart[i].argmin()))
            for i in range(len(a))
            if apart[i].min() <= reach * max(1.0, abs(turn)) and apart[:, apart[i].argmin()].argmin() == i
        ]
        i, j = np.array(pairs).T
        design = np.column_stack([a[i], np.ones(len(i))])
        turn, shift = np.linalg.lstsq(design, b[j], rcond=None)[0]
    return pairs, turn, shift
