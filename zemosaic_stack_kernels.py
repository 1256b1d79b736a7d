"""Compiled loops of the stacker: which samples of a pixel survive, and what they combine to.

`stack_rows` walks over the rows of a rectangle in strips of `STRIP` pixels. The samples of a strip are sorted
once, vertically: every comparator of a sorting network is a minimum and a maximum across the strip. The
survivors of every rejection here are a contiguous range of the sorted samples, so they are named by two bounds
``low <= value <= high``, and the combination is a second pass over the unsorted samples, which are still in the
cache then.

Axes are (n, c, ny, nx); NaN = no data. Sums are float64 and run in frame order, or are exact, so neither strips
nor threads leave a trace. Each loop touches few arrays: where many would have to be proven disjoint the compiler
gives up on vectors. The same arithmetic in array operations is in `zemosaic_stack_arrays`.
"""

from __future__ import annotations

import numpy as np

from zemosaic_clip_kernels import (
    compiled,
    deviation,
    inlined,
    kappa_range,
    linear_fit_range,
    winsorized_range,
)

STRIP = 256

NONE, KAPPA, WINSORIZED, LINEAR_FIT, MODELLED = range(5)

_INF = np.float32(np.inf)
_NAN = np.float32(np.nan)
_ZERO = np.float32(0.0)


@inlined
def _ordered(a, b):
    return (a if a < b else b), (b if a < b else a)


@compiled
def _exchange(block, i, j):
    first, second = block[i], block[j]
    for p in range(STRIP):
        first[p], second[p] = _ordered(first[p], second[p])


@compiled
def _sort_eight(rows):
    """Sort the columns of eight strips that lie one behind the other, without putting values back in between."""
    for p in range(STRIP):
        a, b, c, d = rows[p], rows[p + STRIP], rows[p + 2 * STRIP], rows[p + 3 * STRIP]
        e, f, g, h = rows[p + 4 * STRIP], rows[p + 5 * STRIP], rows[p + 6 * STRIP], rows[p + 7 * STRIP]
        (a, b), (c, d), (e, f), (g, h) = _ordered(a, b), _ordered(c, d), _ordered(e, f), _ordered(g, h)
        (a, c), (b, d), (e, g), (f, h) = _ordered(a, c), _ordered(b, d), _ordered(e, g), _ordered(f, h)
        (b, c), (f, g) = _ordered(b, c), _ordered(f, g)
        (a, e), (b, f), (c, g), (d, h) = _ordered(a, e), _ordered(b, f), _ordered(c, g), _ordered(d, h)
        (c, e), (d, f) = _ordered(c, e), _ordered(d, f)
        (b, c), (d, e), (f, g) = _ordered(b, c), _ordered(d, e), _ordered(f, g)
        rows[p], rows[p + STRIP], rows[p + 2 * STRIP], rows[p + 3 * STRIP] = a, b, c, d
        rows[p + 4 * STRIP], rows[p + 5 * STRIP], rows[p + 6 * STRIP], rows[p + 7 * STRIP] = e, f, g, h


@compiled
def _sort(block, n):
    """Sort the first `n` values of every column of a block in place (no NaN).

    Source: odd-even merge sort, K. E. Batcher, "Sorting networks and their applications", AFIPS 1968. It merges
    sorted runs of p rows; every full eight rows are sorted at once, in registers.
    """
    eights = n - n % 8
    for i in range(0, eights, 8):
        _sort_eight(block[i : i + 8].reshape(8 * STRIP))
    p = 1
    while p < n:
        k = p
        while k > 0:
            # The first step of a merge pairs the runs from their first rows on, the others leave k rows out.
            for j in range((eights if p < 8 else 0) + k % p, n - k, 2 * k):
                for i in range(j, min(j + k, n - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        _exchange(block, i, i + k)
            k //= 2
        p *= 2


@compiled
def _gather(data, at, block, count, found):
    """Copy a strip's samples into the block, no data as +inf; count those of each column and of each frame.

    Columns of the block beyond the strip are +inf. Frames without data in the strip stay out; returns how many
    are in.
    """
    c, y, x0, x1 = at
    width = x1 - x0
    count[:] = 0
    rows, whole = 0, np.int32(0)
    for f in range(data.shape[0]):
        values, target = data[f, c, y, x0:x1], block[rows]
        total = np.int32(0)
        for p in range(width):
            value = values[p]
            target[p] = value if value == value else _INF
            total = np.int32(total + (value == value))
        found[f] = total
        if total == 0:
            continue
        target[width:] = _INF
        rows += 1
        if total == width:
            whole = np.int32(whole + 1)
            continue
        for p in range(width):
            count[p] = np.int32(count[p] + (values[p] == values[p]))
    for p in range(width):
        count[p] = np.int32(count[p] + whole)
    return rows


@compiled
def _medians(block, count, median):
    """Fill the median of every column's samples, float64; its few different counts are gone through in turn."""
    for m in range(count.min(), count.max() + 1):
        low, high = block[max(m - 1, 0) // 2], block[m // 2]
        for p in range(count.shape[0]):
            middle = 0.5 * (np.float64(low[p]) + np.float64(high[p]))
            median[p] = middle if count[p] == m else median[p]
    for p in range(count.shape[0]):
        median[p] = median[p] if count[p] > 0 else np.nan


@compiled
def _deviation_of_rank(block, below, above, length, k, median, out):
    """Fill the k-th smallest deviation from the median, float32.

    The deviations below the median, ``A_i = median - block[below - i]``, and above it, ``B_i = block[above + i] -
    median``, i = 1..length, are ascending lists; the k-th smallest of both together is the minimum over i of
    ``max(A_i, B_(k - i))``, with ``A_0 = B_0 = 0``.
    """
    out[:] = _INF
    for i in range(max(0, k - length), min(k, length) + 1):
        low, high = block[below - max(i, 1)], block[above + max(k - i, 1)]
        for p in range(out.shape[0]):
            a = median[p] - low[p] if i > 0 else _ZERO
            b = high[p] - median[p] if k > i else _ZERO
            larger = a if a > b else b
            out[p] = larger if larger < out[p] else out[p]


@compiled
def _mads(block, count, median, first, second, mad):
    """Fill the median absolute deviation of every column's samples from its float32 median; 0 for one sample."""
    mad[:] = _ZERO
    for m in range(max(2, count.min()), count.max() + 1):
        half, odd = m // 2, m % 2
        _deviation_of_rank(block, half, half + odd - 1, half, half, median, first)
        if odd:
            second[:] = first
        else:
            _deviation_of_rank(block, half, half - 1, half, half + 1, median, second)
        for p in range(count.shape[0]):
            value = np.float32(0.5) * (first[p] + second[p])
            mad[p] = value if count[p] == m else mad[p]


@compiled
def _mean_over_present(data, at, shares, found, exact, count, mean):
    """Fill the mean of `shares` (n) over the frames present in each column, float64; NaN without any.

    Frames that cover the whole strip are added once for all columns, where sums are exact in any order.
    """
    c, y, x0, x1 = at
    mean[:], of_whole = 0.0, 0.0
    for f in range(data.shape[0]):
        share = shares[f]
        if found[f] == 0 or share == 0.0:
            continue
        if exact and found[f] == x1 - x0:
            of_whole += share
            continue
        values = data[f, c, y, x0:x1]
        for p in range(x1 - x0):
            mean[p] += share if values[p] == values[p] else 0.0
    for p in range(x1 - x0):
        mean[p] = (mean[p] + of_whole) / count[p]


@compiled
def _span_over_present(data, at, shares, found, lowest, span):
    """Fill how far the `shares` (n) of the frames present in each column lie apart, float64; -inf without any."""
    c, y, x0, x1 = at
    lowest[:], span[:] = np.inf, -np.inf  # span holds the largest first
    low, high = np.inf, -np.inf  # of the frames that cover the whole strip
    for f in range(data.shape[0]):
        share = shares[f]
        if found[f] == x1 - x0:
            low, high = min(low, share), max(high, share)
        elif found[f] > 0:
            values = data[f, c, y, x0:x1]
            for p in range(x1 - x0):
                lowest[p] = min(lowest[p], share if values[p] == values[p] else np.inf)
            for p in range(x1 - x0):
                span[p] = max(span[p], share if values[p] == values[p] else -np.inf)
    for p in range(x1 - x0):
        span[p] = max(span[p], high) - min(lowest[p], low)


@compiled
def _variances(median, mad, to_sigma, count, mean, variance):
    """Fill the larger of the variance that the samples prove and the one that their frames' noise lets expect."""
    sky, photon, floor = mean[0], mean[1], mean[2]
    for p in range(count.shape[0]):
        proven = mad[p] * to_sigma[count[p]]
        signal = photon[p] * median[p] - floor[p]
        expected = np.float32(sky[p] + (signal if signal > 0.0 else 0.0))
        squared = proven * proven
        variance[p] = squared if squared > expected else expected


@compiled
def _model_row(data, c, y, noise, exact, to_sigma, scratch, filled):
    """Fill median, variance, mean and span of blur of the samples of a row, and how many samples each pixel has.

    See `stack_rows` for `noise` (here of one channel), whether it is `exact`, and `to_sigma`.
    """
    median, variance, mean_blur, span, count = filled
    block, middle, mad, ranked, found, mean = scratch
    for x0 in range(0, data.shape[3], STRIP):
        x1 = min(data.shape[3], x0 + STRIP)
        at, width = (c, y, x0, x1), x1 - x0
        here, counts = median[x0:x1], count[x0:x1]
        _sort(block, _gather(data, at, block, counts, found))
        _medians(block, counts, middle[:width])
        for p in range(width):
            here[p] = np.float32(middle[p])
        _mads(block, counts, here, ranked[0, :width], ranked[1, :width], mad[:width])
        for k in range(4):
            _mean_over_present(data, at, noise[k], found, exact, counts, mean[k, :width])
        _variances(here, mad, to_sigma, counts, mean, variance[x0:x1])
        for p in range(width):
            mean_blur[x0 + p] = np.float32(mean[3, p])
        _span_over_present(data, at, noise[3], found, mean[3, :width], middle[:width])
        for p in range(width):
            span[x0 + p] = np.float32(middle[p])


@compiled
def _largest_steps(above, here, below, step):
    """Fill the largest step from each pixel of a row to its four neighbours; NaN ones make none."""
    for p in range(here.shape[0]):
        a, b = abs(above[p] - here[p]), abs(below[p] - here[p])
        a = a if a == a else _ZERO
        step[p] = b if b > a else a
    before, after = here[:-1], here[1:]
    left, right = step[:-1], step[1:]
    for p in range(before.shape[0]):
        d = abs(after[p] - before[p])
        right[p] = d if d > right[p] else right[p]
    for p in range(before.shape[0]):
        d = abs(after[p] - before[p])
        left[p] = d if d > left[p] else left[p]


@compiled
def _curvatures(above, here, below, curve):
    """Fill half the Laplacian of a row, 0 where a neighbour is missing: how a pixel changes with blur."""
    half = np.float32(0.5)
    curve[0], curve[-1] = _ZERO, _ZERO
    inner, left, right, middle = curve[1:-1], here[:-2], here[2:], here[1:-1]
    for p in range(inner.shape[0]):
        inner[p] = (left[p] - middle[p]) + (right[p] - middle[p])
    for p in range(curve.shape[0]):
        bend = half * (curve[p] + ((above[p] - here[p]) + (below[p] - here[p])))
        curve[p] = bend if bend == bend else _ZERO


@compiled
def _modelled_bounds(median, variance, mean_blur, span, count, step, shares, kappas, bounds):
    """Fill the bounds of a row; its steps are used up, its curvatures lose what noise may have made of them.

    See `stack_rows` for `shares`.
    """
    low, high, curve = bounds
    for p in range(median.shape[0]):
        few = variance[p] / np.float32(max(count[p], np.int32(1)))
        steep = step[p] * step[p] - shares[1] * few
        bent = curve[p] * curve[p] - shares[2] * few
        step[p] = np.sqrt(variance[p] + shares[0] * (steep if steep > _ZERO else _ZERO))
        bent = np.sqrt(bent) if bent > _ZERO else _ZERO
        curve[p] = bent if curve[p] > _ZERO else -bent
    for p in range(median.shape[0]):
        centre = median[p] - mean_blur[p] * curve[p]
        room = shares[3] * span[p] * abs(curve[p])
        low[p] = centre - (kappas[0] * step[p] + room) if count[p] > 2 else -_INF
        high[p] = centre + (kappas[1] * step[p] + room) if count[p] > 2 else _INF
    for p in range(median.shape[0]):
        curve[p] = curve[p] if count[p] > 0 else _ZERO


@compiled
def _sum_differences(block, rows, count, median, total, squares):
    """Fill the sums of `kappa_range` for whole columns at once; two rows at a time where all columns are full."""
    total[:], squares[:] = 0.0, 0.0
    full = rows - rows % 2 if count.min() == rows else 0
    for r in range(0, full, 2):
        first, second = block[r], block[r + 1]
        for p in range(count.shape[0]):
            centre = np.float32(median[p])
            d, e = np.float64(first[p] - centre), np.float64(second[p] - centre)
            total[p] = (total[p] + d) + e
            squares[p] = (squares[p] + d * d) + e * e
    for r in range(full, rows):
        values = block[r]
        for p in range(count.shape[0]):
            d = np.float64(values[p] - np.float32(median[p])) if r < count[p] else 0.0
            total[p] += d
            squares[p] += d * d


@compiled
def _extremes(block, rows, count, low, high):
    """Fill the smallest and the largest sample of every column, -inf and +inf where there is none."""
    alike = count.min() == rows and rows > 0
    for p in range(count.shape[0]):
        low[p] = block[0, p] if count[p] > 0 else -_INF
    if alike:
        high[:] = block[rows - 1, : count.shape[0]]
    else:
        for p in range(count.shape[0]):
            high[p] = block[count[p] - 1, p] if count[p] > 0 else _INF


@compiled
def _clean_columns(low, high, count, median, kappas, total, squares, clean):
    """Mark the columns from which a clip at kappa standard deviations takes nothing; most of them are such."""
    for p in range(count.shape[0]):
        sigma = deviation(total[p], squares[p], 1.0 / max(count[p], 1))
        clean[p] = not (low[p] < median[p] - kappas[0] * sigma or high[p] > median[p] + kappas[1] * sigma)


@compiled
def _sample_bounds(data, c, y, method, clip, scratch, low, high):
    """Fill the smallest and largest surviving sample of every pixel of a row, from its samples alone.

    Everything survives where there are fewer than three samples.
    """
    kappas, iterations, limits = clip
    block, middle, found, count, sums, mean, clean, values = scratch
    for x0 in range(0, data.shape[3], STRIP):
        x1 = min(data.shape[3], x0 + STRIP)
        counts, lowest, highest = count[: x1 - x0], low[x0:x1], high[x0:x1]
        rows = _gather(data, (c, y, x0, x1), block, counts, found)
        _sort(block, rows)
        _extremes(block, rows, counts, lowest, highest)
        clean[:] = False
        if method == KAPPA:
            _medians(block, counts, middle[: x1 - x0])
            _sum_differences(block, rows, counts, middle, mean[0], mean[1])
            _clean_columns(lowest, highest, counts, middle, kappas, mean[0], mean[1], clean)
        for p in range(x1 - x0):
            m = counts[p]
            if clean[p] or m < 3:
                continue
            for r in range(m):
                values[r] = block[r, p]
            if method == KAPPA:
                a, b = kappa_range(values, m, mean[0, p], mean[1, p], kappas, iterations)
            elif method == WINSORIZED:
                a, b = winsorized_range(values, m, kappas, iterations, limits, sums)
            else:
                a, b = linear_fit_range(values, m, kappas, iterations)
            lowest[p] = values[a] if b > a else -_INF
            highest[p] = values[b - 1] if b > a else _INF


@inlined
def _judged(values, blur, curve, low, high, matched):
    """Fill the values less what blur makes of them; return how many are within bounds, too low, too high."""
    good, under, over = np.int32(0), np.int32(0), np.int32(0)
    for p in range(values.shape[0]):
        value = values[p] - blur * curve[p]
        matched[p] = value
        good = np.int32(good + np.int32((low[p] <= value) & (value <= high[p])))
        under = np.int32(under + np.int32(value < low[p]))
        over = np.int32(over + np.int32(value > high[p]))
    return good, under, over


@inlined
def _keep(matched, low, high, kept, n_kept):
    """Note which samples are within bounds, and count them for their pixels."""
    for p in range(matched.shape[0]):
        kept[p] = np.int32((low[p] <= matched[p]) & (matched[p] <= high[p]))
    for p in range(matched.shape[0]):
        n_kept[p] = np.int32(n_kept[p] + kept[p])


@inlined
def _count_outside(matched, low, high, under, over, n_low, n_high):
    """Add the samples that are too low and too high, `under` and `over` of them, to the counts of their pixels."""
    if under:
        for p in range(matched.shape[0]):
            n_low[p] = np.int32(n_low[p] + np.int32(matched[p] < low[p]))
    if over:
        for p in range(matched.shape[0]):
            n_high[p] = np.int32(n_high[p] + np.int32(matched[p] > high[p]))


@inlined
def _add_all(values, weight, total, weights):
    """Add samples of which none is missing or rejected."""
    for p in range(values.shape[0]):
        total[p] += weight * values[p]
        weights[p] += weight


@inlined
def _add_all_weighed(values, weight, of_pixel, total, weights):
    """As `_add_all`, with a further weight a pixel."""
    for p in range(values.shape[0]):
        w = weight * of_pixel[p]
        total[p] += w * values[p]
        weights[p] += w


@inlined
def _add_kept(values, kept, weight, total, weights):
    """Add the samples that are kept."""
    for p in range(values.shape[0]):
        total[p] += weight * (values[p] if kept[p] else _ZERO)
        weights[p] += weight if kept[p] else 0.0


@inlined
def _add_kept_weighed(values, kept, weight, of_pixel, total, weights):
    """As `_add_kept`, with a further weight a pixel."""
    for p in range(values.shape[0]):
        w = weight * of_pixel[p]
        total[p] += w * (values[p] if kept[p] else _ZERO)
        weights[p] += w if kept[p] else 0.0


@inlined
def _divide(total, weights, image, weight_out):
    """Fill image and weight from their sums, NaN and 0 without any."""
    for p in range(image.shape[0]):
        image[p] = np.float32(total[p] / weights[p]) if weights[p] > 0.0 else _NAN
    for p in range(image.shape[0]):
        weight_out[p] = np.float32(weights[p])


@compiled
def _mean_strip(data, at, weight, blur, pixel_weight, bounds, scratch, image, weight_out, counts, tally):
    """Fill the weighted mean of a strip's samples within bounds; count what became of each sample.

    A frame that keeps all its samples in a strip is added without a mask. There is a loop for each kind of weight,
    since a choice between arrays before a loop would cost it its vectors.
    """
    c, y, x0, x1 = at
    low, high, curve = bounds
    total, weights, kept, matched = scratch
    n_kept, n_low, n_high = counts
    total[:], weights[:] = 0.0, 0.0
    n_kept[:], n_low[:], n_high[:] = 0, 0, 0
    weighed, whole = pixel_weight.shape[0] > 0, np.int32(0)
    for f in range(data.shape[0]):
        values, w = data[f, c, y, x0:x1], weight[f]
        good, under, over = _judged(values, blur[f], curve, low, high, matched)
        tally[f, 0] += good
        tally[f, 1] += under
        tally[f, 2] += over
        if good == x1 - x0:
            whole = np.int32(whole + 1)
            if weighed:
                _add_all_weighed(values, w, pixel_weight[f, y, x0:x1], total, weights)
            else:
                _add_all(values, w, total, weights)
        elif good + under + over > 0:
            _keep(matched, low, high, kept, n_kept)
            if weighed:
                _add_kept_weighed(values, kept, w, pixel_weight[f, y, x0:x1], total, weights)
            else:
                _add_kept(values, kept, w, total, weights)
            _count_outside(matched, low, high, under, over, n_low, n_high)
    for p in range(x1 - x0):
        n_kept[p] = np.int32(n_kept[p] + whole)
    _divide(total, weights, image, weight_out)


@compiled
def _mean_row(data, c, y, corner, weight, blur, pixel_weight, bounds, scratch, image, weight_out, counts, tally):
    """Fill the weighted mean of a row's samples within bounds, strip by strip.

    `pixel_weight` has no frame for none; samples of weight 0 are NaN (`zemosaic_stack_core`).
    """
    low, high, curve = bounds
    total, weights, kept, matched = scratch
    n_kept, n_low, n_high = counts
    for i0 in range(0, image.shape[0], STRIP):
        i1 = min(image.shape[0], i0 + STRIP)
        w, x0, x1 = i1 - i0, i0 + corner, i1 + corner
        part = (total[:w], weights[:w], kept[:w], matched[:w])
        of_strip = (n_kept[i0:i1], n_low[i0:i1], n_high[i0:i1])
        filled = (image[i0:i1], weight_out[i0:i1], of_strip)
        of_bounds = (low[x0:x1], high[x0:x1], curve[x0:x1])
        _mean_strip(data, (c, y, x0, x1), weight, blur, pixel_weight, of_bounds, part, *filled, tally)


@compiled
def _median_row(data, c, y, corner, weight, blur, pixel_weight, bounds, image):
    """Replace `image` by the weighted median of a row's samples within bounds.

    The weighted median is the middle of the interval on which the weights below and above balance; with equal
    weights it is the ordinary median. `pixel_weight` has no frame for none.
    """
    low, high, curve = bounds
    n = data.shape[0]
    values, weights = np.empty(n), np.empty(n)
    for i in range(image.shape[0]):
        m, x = 0, i + corner
        for f in range(n):
            value = data[f, c, y, x]
            w = weight[f] * (pixel_weight[f, y, x] if pixel_weight.shape[0] else 1.0)
            if low[x] <= value - blur[f] * curve[x] <= high[x] and w > 0.0:
                values[m], weights[m] = value, w
                m += 1
        image[i] = _balanced(values[:m], weights[:m]) if m else np.nan


@compiled
def _balanced(values, weights):
    order = np.argsort(values, kind="mergesort")
    half = 0.5 * np.sum(weights)
    below = 0.0
    for k in range(order.shape[0]):
        below += weights[order[k]]
        if below > half * (1.0 + 1e-12):
            return values[order[k]]
        if below >= half * (1.0 - 1e-12):
            return 0.5 * (values[order[k]] + values[order[min(k + 1, order.shape[0] - 1)]])
    return values[order[-1]]


@compiled
def _bounds_of_row(data, c, y, method, model, clip, scratch, bounds):
    """Fill the bounds of row y of a channel; the model's rows up to y + 1 are made when they are needed."""
    low, high, curve = bounds
    noise, exact, to_sigma, shares, ring, done = model
    model_scratch, sample_scratch, step = scratch
    median, variance, mean_blur, span, count = ring
    if method == NONE:
        low[:], high[:] = -_INF, _INF
    elif method == MODELLED:
        last = data.shape[2] - 1
        while done[0] < min(y + 1, last):
            done[0] += 1
            k = done[0] % 3
            filled = (median[k], variance[k], mean_blur[k], span[k], count[k])
            _model_row(data, c, done[0], noise, exact, to_sigma, model_scratch, filled)
        here, k = median[y % 3], y % 3
        above, below = median[max(y - 1, 0) % 3], median[min(y + 1, last) % 3]
        _largest_steps(above, here, below, step)
        _curvatures(above, here, below, curve)
        small = (np.float32(clip[0][0]), np.float32(clip[0][1]))
        _modelled_bounds(here, variance[k], mean_blur[k], span[k], count[k], step, shares, small, bounds)
    else:
        _sample_bounds(data, c, y, method, clip, sample_scratch, low, high)


@compiled
def stack_rows(
    data, weight, pixel_weight, noise, method, clip, to_sigma, shares, use_median, rows, corner, filled, tally
):
    """Stack some rows of a rectangle.

    Parameters
    ----------
    data : ndarray, shape (n, c, ny, nx), float32
        Normalised samples.
    weight : ndarray, shape (n, c), float64
    pixel_weight : ndarray, shape (n, ny, nx), float32
        A further weight a pixel; (0, 0, 0) for none.
    noise : tuple
        ``(table, exact)``: of each frame, (4, n, c) float64, the variance of a sample on empty sky, the variance
        that a unit of signal adds, that times the level at which its signal begins, and its blur; and whether
        sums of these over any of the frames are exact, so that their order does not matter.
    method : int
        `NONE`, `KAPPA`, `WINSORIZED`, `LINEAR_FIT` or `MODELLED`.
    clip : tuple
        ``(kappas, iterations, limits)``: thresholds low and high, most iterations, fractions of the first
        winsorisation low and high.
    to_sigma : ndarray, shape (n + 1,), float32
        What turns a median absolute deviation of so many samples into the spread they prove.
    shares : tuple of four float32
        Share of the square of the largest step that enters the variance; multiples of the variance of a sample,
        over their number, that squares of steps and of curvatures reach by noise alone; share of what blur makes
        of a pixel that remains unknown.
    use_median : bool
        Combine to the weighted median instead of the mean.
    rows : tuple of int
        First and last + 1 row of the filled arrays.
    corner : tuple of int
        Row and column of `data` that the first pixel of the filled arrays stands for.
    filled : tuple of ndarray
        Image and weight (c, my, mx) float32, NaN and 0 where nothing survives, and counts (3, c, my, mx) int32 of
        samples that survive, are too low, are too high.
    tally : ndarray, shape (n, 3), int64
        The same a frame; added to.
    """
    n, channels, _, nx = data.shape
    image, weight_out, counts = filled
    table, exact = noise
    block, found = np.empty((max(n, 1), STRIP), dtype=np.float32), np.empty(n, dtype=np.int32)
    middle, mad = np.empty(STRIP), np.empty(STRIP, dtype=np.float32)
    ranked, count = np.empty((2, STRIP), dtype=np.float32), np.empty(STRIP, dtype=np.int32)
    mean, sums, clean = np.empty((4, STRIP)), np.zeros((2, n + 1)), np.empty(STRIP, dtype=np.bool_)
    model_scratch = (block, middle, mad, ranked, found, mean)
    values = np.empty(n, dtype=np.float32)
    sample_scratch = (block, middle, found, count, sums, mean, clean, values)
    matched = mad  # free again where a row is combined
    mean_scratch = (np.empty(STRIP), np.empty(STRIP), np.empty(STRIP, dtype=np.int32), matched)
    of_three = np.empty((4, 3, nx), dtype=np.float32)
    ring = (of_three[0], of_three[1], of_three[2], of_three[3], np.empty((3, nx), dtype=np.int32))
    of_row = np.zeros((4, nx), dtype=np.float32)
    scratch = (model_scratch, sample_scratch, of_row[3])
    bounds = (of_row[0], of_row[1], of_row[2])
    for c in range(channels):
        done = np.array([max(rows[0] + corner[0] - 2, -1)])
        model = (np.ascontiguousarray(table[:, :, c]), exact, to_sigma, shares, ring, done)
        share, blur = np.ascontiguousarray(weight[:, c]), table[3, :, c].astype(np.float32)
        if method != MODELLED:
            blur[:] = _ZERO
        for row in range(rows[0], rows[1]):
            y = row + corner[0]
            _bounds_of_row(data, c, y, method, model, clip, scratch, bounds)
            of_row = (counts[0, c, row], counts[1, c, row], counts[2, c, row])
            means = (image[c, row], weight_out[c, row], of_row)
            _mean_row(data, c, y, corner[1], share, blur, pixel_weight, bounds, mean_scratch, *means, tally)
            if use_median:
                _median_row(data, c, y, corner[1], share, blur, pixel_weight, bounds, image[c, row])
