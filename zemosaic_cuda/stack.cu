// The stacker's kernels, see `zemosaic_stack_cuda`, which defines before this: BLOCK, threads of a block; N_LANES, how
// many of them share a pixel; N_OWN, samples that each reads; N_EACH, samples that each holds; AHEAD; METHOD, one of
// NONE, KAPPA, WINSORIZED, LINEAR_FIT and MODELLED; WEIGHED, whether pixels have weights of their own.

#define N_SAMPLES (N_EACH * N_LANES)  // most samples of a pixel
#define N_PIXELS (BLOCK / N_LANES)    // pixels of a block of `bounds`
#define STRIDE 16  // running sums are kept for every so many samples
#define ALL_LANES 0xffffffffu
#define INF __int_as_float(0x7f800000)
#define NOT_A_NUMBER __int_as_float(0x7fc00000)
#define INLINE __device__ __forceinline__

// The samples of one pixel in ascending order, no data as +inf at the end. A column of a table whose rows are the
// ranks; the part of each lane starts a few banks further, so that the lanes of a warp write to different ones.
struct Ranked {
    const float* column;

    static INLINE int row(int rank)
    {
        return rank * N_PIXELS + (N_LANES > 1 ? int(unsigned(rank) / N_EACH) * (32 / N_LANES) : 0);
    }

    INLINE float operator[](int rank) const { return column[row(rank)]; }
};

struct Range {
    int first, last;  // the last is not in it
};

INLINE void exchange(float& a, float& b)
{
    const float smaller = fminf(a, b);
    b = fmaxf(a, b);
    a = smaller;
}

// Sort a thread's own samples. They are in registers: every index must be known when this is compiled.
// Source: odd-even merge sort, K. E. Batcher, "Sorting networks and their applications" (1968); runs of P samples
// are merged to runs of 2 P, in steps that compare samples K apart.
template <int P = 1, int K = 1>
INLINE void sort_own(float (&value)[N_EACH])
{
#pragma unroll
    for (int i = K % P; i + K < N_OWN; ++i)
        if ((i - K % P) / K % 2 == 0 && i / (2 * P) == (i + K) / (2 * P)) exchange(value[i], value[i + K]);
    if constexpr (K > 1) sort_own<P, K / 2>(value);
    else if constexpr (2 * P < N_OWN) sort_own<2 * P, 2 * P>(value);
}

// Merge the sorted samples of the lanes that share a pixel; each ends with a consecutive part of all.
// Source: bitonic merge, the same paper; its first step compares the smallest with the largest.
// Not unrolled further: a GPU reads long code more slowly than it computes.
INLINE void merge_lanes(float (&value)[N_EACH], int lane)
{
#pragma unroll 1
    for (int width = 2; width <= N_LANES; width *= 2) {
        const bool lower = !(lane & (width / 2));
#pragma unroll
        for (int i = 0; i < N_EACH / 2; ++i) {
            const int j = N_EACH - 1 - i;
            const float of_j = __shfl_xor_sync(ALL_LANES, value[j], width - 1);
            const float of_i = __shfl_xor_sync(ALL_LANES, value[i], width - 1);
            value[i] = lower ? fminf(value[i], of_j) : fmaxf(value[i], of_j);
            value[j] = lower ? fminf(value[j], of_i) : fmaxf(value[j], of_i);
        }
#pragma unroll 1
        for (int step = width / 4; step > 0; step /= 2) {
            const bool low = !(lane & step);
#pragma unroll
            for (int i = 0; i < N_EACH; ++i) {
                const float other = __shfl_xor_sync(ALL_LANES, value[i], step);
                value[i] = low ? fminf(value[i], other) : fmaxf(value[i], other);
            }
        }
#pragma unroll
        for (int step = N_EACH / 2; step > 0; step /= 2)
#pragma unroll
            for (int i = 0; i < N_EACH; ++i)
                if (!(i & step)) exchange(value[i], value[i + step]);
    }
}

// Read the samples of the block's pixels and sort them; the caller waits for the other threads. Lane q of a pixel
// holds frames q, q + N_LANES, ...; bit i of what is returned says that the i-th of them has data.
INLINE unsigned long long gather_sorted(
    const float* __restrict__ data, int n, int channels, long long plane, int c, long long first_pixel,
    float* sorted)
{
    const int lane = threadIdx.x % N_LANES, column = threadIdx.x / N_LANES;
    const long long pixel = first_pixel + column, next = (long long)N_LANES * channels * plane;
    const float* from = data + ((long long)lane * channels + c) * plane + pixel;
    float value[N_EACH];
#pragma unroll
    for (int i = 0; i < N_OWN; ++i, from += next)
        value[i] = pixel < plane && i * N_LANES + lane < n ? *from : NOT_A_NUMBER;
    unsigned long long present = 0;
#pragma unroll
    for (int i = 0; i < N_OWN; ++i) {
        const bool here = value[i] == value[i];
        present |= here ? 1ull << i : 0ull;
        value[i] = here ? value[i] : INF;
    }
#pragma unroll
    for (int i = N_OWN; i < N_EACH; ++i) value[i] = INF;
    sort_own(value);
    merge_lanes(value, lane);
    float* to = sorted + Ranked::row(lane * N_EACH) + column;
#pragma unroll
    for (int i = 0; i < N_EACH; ++i) to[i * N_PIXELS] = value[i];
    return present;
}

// Return the sum of what the lanes of a pixel hold.
template <typename T>
INLINE T sum_of_lanes(T value)
{
#pragma unroll
    for (int step = 1; step < N_LANES; step *= 2) value += __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

INLINE double median_of(const Ranked& value, int a, int b)
{
    return 0.5 * ((double)value[a + (b - a - 1) / 2] + (double)value[a + (b - a) / 2]);
}

// What is expected of a frame, or of several: see `zemosaic_stack_kernels.stack_rows`, in whole steps of each.
struct alignas(16) Steps {
    int sky, photon, floor, blur;

    INLINE void add(const Steps& other, int sign)
    {
        sky += sign * other.sky;
        photon += sign * other.photon;
        floor += sign * other.floor;
        blur += sign * other.blur;
    }
};

// A channel's frames, divided among the lanes as by `gather_sorted`: the i-th of each lane, their sum, and the
// numbers i of each lane's frames in the order of their blur.
struct Frames {
    Steps of_frame[N_EACH][N_LANES], all[N_LANES];
    int by_blur[N_EACH][N_LANES];
};
static_assert(sizeof(Frames) == 4 * (5 * N_EACH + 4) * N_LANES, "the host packs channels without gaps");

#if METHOD == MODELLED

// What is expected of the frames that have data of a pixel: sums over them, and how far their blurs lie apart.
struct Expected {
    double sky, photon, floor, blur, span;
};

// Return what is expected of the frames that the lanes of a pixel have data of. Sums of whole numbers are exact in
// any order, so a lane may take what is missing off the sum over all of its frames.
INLINE Expected of_present(
    unsigned long long present, const Frames& frames, int n, const double* __restrict__ step)
{
    const int lane = threadIdx.x % N_LANES, own = (n - lane + N_LANES - 1) / N_LANES;
    const unsigned long long missing = ~present & ~0ull >> (64 - own);
    const bool few = __popcll(missing) < __popcll(present);
    Steps sum = {0, 0, 0, 0};
    if (few) sum = frames.all[lane];
    for (unsigned long long left = few ? missing : present; left; left &= left - 1)
        sum.add(frames.of_frame[__ffsll((long long)left) - 1][lane], few ? -1 : 1);
    float lowest = INF, highest = -INF;
    if (present) {
        int first = 0, last = N_EACH - 1;
        while (!(present >> frames.by_blur[first][lane] & 1)) ++first;
        while (!(present >> frames.by_blur[last][lane] & 1)) --last;
        lowest = (float)frames.of_frame[frames.by_blur[first][lane]][lane].blur;
        highest = (float)frames.of_frame[frames.by_blur[last][lane]][lane].blur;
    }
#pragma unroll
    for (int k = 1; k < N_LANES; k *= 2) {
        lowest = fminf(lowest, __shfl_xor_sync(ALL_LANES, lowest, k));
        highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, k));
    }
    const double sky = sum_of_lanes((double)sum.sky), photon = sum_of_lanes((double)sum.photon);
    const double floor = sum_of_lanes((double)sum.floor), blur = sum_of_lanes((double)sum.blur);
    const double span = (double)highest - (double)lowest;
    return {sky * step[0], photon * step[1], floor * step[2], blur * step[3], span * step[3]};
}

// The median deviation from the median. The deviations of ranks half - i and of ranks above + i, i = 1..half, are
// two ascending lists; the half smallest of both are the first i of one and the first half - i of the other, where
// the one overtakes the other. Of an even number it is the mean of the last of these and the next one.
INLINE float median_deviation(const Ranked& value, int m, float median)
{
    if (m < 2) return 0.0f;
    const int half = m / 2, above = half + m % 2 - 1;
    const auto under = [&](int i) { return i > 0 ? median - value[half - i] : 0.0f; };
    const auto over = [&](int i) { return i > 0 ? value[above + i] - median : 0.0f; };
    int i = 0, most = half;
    while (i < most) {
        const int middle = (i + most) / 2;
        if (under(middle) >= over(half - middle)) most = middle;
        else i = middle + 1;
    }
    float last = fmaxf(under(i), over(half - i));
    if (i > 0 && over(half - i + 1) < last) last = over(half - --i);
    if (m % 2) return 0.5f * (last + last);
    const float next_under = i < half ? under(i + 1) : INF, next_over = i > 0 ? over(half - i + 1) : INF;
    return 0.5f * (last + fminf(next_under, next_over));
}

// Fill median, variance, mean and span of blur, and the number of samples of a pixel.
INLINE void describe(
    const Ranked& value, int m, const Expected& sum, const float* __restrict__ to_sigma, float* to, long long step)
{
    const float median = m > 0 ? (float)median_of(value, 0, m) : NOT_A_NUMBER;
    const float proven = median_deviation(value, m, median) * to_sigma[m];
    const double signal = sum.photon / m * median - sum.floor / m;
    const float expected = (float)(sum.sky / m + (signal > 0.0 ? signal : 0.0));
    const float squared = proven * proven;
    to[0] = median;
    to[step] = squared > expected ? squared : expected;
    to[2 * step] = (float)(sum.blur / m);
    to[3 * step] = (float)sum.span;
    to[4 * step] = (float)m;
}

#elif METHOD != NONE

INLINE double deviation(double total, double squares, double share)
{
    const double mean = total * share, variance = squares * share - mean * mean;
    return sqrt(variance > 0.0 ? variance : 0.0);
}

// Move the ends of a range inwards to low..high.
INLINE Range trim(const Ranked& value, Range range, double low, double high)
{
    while (range.first < range.last && value[range.first] < low) ++range.first;
    while (range.last > range.first && value[range.last - 1] > high) --range.last;
    return range;
}

// The iterated clip about the median with the standard deviation of the survivors, from sums about the first one.
INLINE Range kappa_range(const Ranked& value, int m, double kappa_low, double kappa_high, int iterations)
{
    const float centre = (float)median_of(value, 0, m);
    double total = 0.0, squares = 0.0;
    for (int r = 0; r < m; ++r) {
        const double d = value[r] - centre;
        total += d;
        squares += d * d;
    }
    Range range = {0, m};
    for (int turn = 0; turn < iterations && range.last - range.first >= 3; ++turn) {
        const double median = median_of(value, range.first, range.last);
        const double sigma = deviation(total, squares, 1.0 / (range.last - range.first));
        const Range inner = trim(value, range, median - kappa_low * sigma, median + kappa_high * sigma);
        if (inner.first == range.first && inner.last == range.last) break;
        for (int r = range.first; r < range.last; ++r) {
            if (r >= inner.first && r < inner.last) continue;
            const double d = value[r] - centre;
            total -= d;
            squares -= d * d;
        }
        range = inner;
    }
    return range;
}

// Sums of differences to a centre, and of their squares, over the first samples of a range. Every STRIDE-th is
// kept, a column of a table of two rows each; those between are added up anew, in the same order.
struct Running {
    double* column;
    const Ranked& value;
    int first;
    float centre;

    INLINE void fill(int m) const
    {
        double total = 0.0, squares = 0.0;
        for (int r = 0;; ++r) {
            if (r % STRIDE == 0) {
                column[r / STRIDE * 2 * N_PIXELS] = total;
                column[(r / STRIDE * 2 + 1) * N_PIXELS] = squares;
            }
            if (r == m) break;
            add(r, total, squares);
        }
    }

    INLINE void up_to(int m, double& total, double& squares) const
    {
        total = column[m / STRIDE * 2 * N_PIXELS];
        squares = column[(m / STRIDE * 2 + 1) * N_PIXELS];
        for (int r = m / STRIDE * STRIDE; r < m; ++r) add(r, total, squares);
    }

    INLINE void add(int r, double& total, double& squares) const
    {
        const double d = value[first + r] - centre;
        total += d;
        squares += d * d;
    }
};

// Spread by repeated winsorisation at 1.5 sigma, from a first one at the given fractions.
INLINE double huber_sigma(const Ranked& value, Range range, double limit_low, double limit_high, double* sums)
{
    const int a = range.first, m = range.last - range.first;
    const double median = median_of(value, range.first, range.last);
    const Running running = {sums, value, a, (float)median};
    running.fill(m);
    const double centre = running.centre, share = 1.0 / m;
    double low = value[a + int(limit_low * m)], high = value[range.last - 1 - int(limit_high * m)], sigma = 0.0;
    int i = 0, j = m;
    for (int turn = 0; turn < 51; ++turn) {
        if (turn) low = median - 1.5 * sigma, high = median + 1.5 * sigma;
        while (i > 0 && value[a + i - 1] >= low) --i;
        while (i < m && value[a + i] < low) ++i;
        while (j < m && value[a + j] <= high) ++j;
        while (j > i && value[a + j - 1] > high) --j;
        double below, below_squares, total, squares;
        running.up_to(i, below, below_squares);
        running.up_to(j, total, squares);
        const double down = low - centre, up = high - centre;
        total = i * down + (total - below) + (m - j) * up;
        squares = i * down * down + (squares - below_squares) + (m - j) * up * up;
        const double before = sigma;
        sigma = 1.134 * deviation(total, squares, share);
        if (turn && fabs(sigma - before) <= 0.0005 * before) break;
    }
    return sigma;
}

// Repeated clip of the original samples with their Huber-winsorised spread.
INLINE Range winsorized_range(
    const Ranked& value, int m, double kappa_low, double kappa_high, int iterations, double limit_low,
    double limit_high, double* sums)
{
    Range range = {0, m};
    for (int turn = 0; turn < iterations && range.last - range.first >= 3; ++turn) {
        const double median = median_of(value, range.first, range.last);
        const double sigma = huber_sigma(value, range, limit_low, limit_high, sums);
        const Range inner = trim(value, range, median - kappa_low * sigma, median + kappa_high * sigma);
        if (inner.first == range.first && inner.last == range.last) break;
        range = inner;
    }
    return range;
}

// Clip at both ends by residuals to a line through the sorted samples, in units of their mean size.
INLINE Range linear_fit_range(const Ranked& value, int m, double kappa_low, double kappa_high, int iterations)
{
    int a = 0, b = m;
    for (int turn = 0; turn < iterations && b - a >= 3; ++turn) {
        const int k = b - a;
        const double middle = 0.5 * (k - 1);
        double mean = 0.0, slope = 0.0, size = 0.0;
        for (int r = 0; r < k; ++r) {
            const double v = value[a + r];
            mean += v;
            slope += (r - middle) * v;
        }
        mean /= k;
        slope /= k * ((double)k * k - 1.0) / 12.0;
        for (int r = 0; r < k; ++r) size += fabs(value[a + r] - (mean + slope * (r - middle)));
        size /= k;
        const double centre = a + 0.5 * (k - 1);
        int first = a, last = b;
        while (first < last && mean + slope * (first - centre) - value[first] > kappa_low * size) ++first;
        while (last > first && value[last - 1] - (mean + slope * (last - 1 - centre)) > kappa_high * size) --last;
        if (first == a && last == b) break;
        a = first, b = last;
    }
    return {a, b};
}

#endif

#if METHOD != NONE

// Fill for every pixel of a channel (blockIdx.y) what its bounds follow from: `planes` of shape (5, c, pixels),
// median, variance, mean and span of blur and number of samples for MODELLED, else (2, c, pixels), the bounds.
// N_LANES threads sort a pixel's samples, then one thread judges it. `frames` is of the channels, `steps` (4) are
// those of what is expected.
// Five blocks at once leave a thread 96 registers, and nothing is spilt; fewer registers were slower.
extern "C" __global__ void __launch_bounds__(BLOCK, 5) bounds(
    const float* __restrict__ data, int n, int channels, long long plane, const Frames* __restrict__ frames,
    const double* __restrict__ steps, const float* __restrict__ to_sigma, double kappa_low, double kappa_high,
    int iterations, double limit_low, double limit_high, float* __restrict__ planes)
{
    __shared__ float sorted[N_EACH * BLOCK + 32];
    __shared__ int counts[N_PIXELS];
    const int c = blockIdx.y, column = threadIdx.x;
    const bool first_lane = threadIdx.x % N_LANES == 0;
    const long long first_pixel = (long long)blockIdx.x * N_PIXELS, pixel = first_pixel + column;
    const unsigned long long present = gather_sorted(data, n, channels, plane, c, first_pixel, sorted);
    const int found = sum_of_lanes(__popcll(present));
    if (first_lane) counts[threadIdx.x / N_LANES] = found;
#if METHOD == MODELLED
    Expected sum = of_present(present, frames[c], n, steps);
#if N_LANES > 1
    __shared__ Expected sums[N_PIXELS];
    if (first_lane) sums[threadIdx.x / N_LANES] = sum;
#endif
#elif METHOD == WINSORIZED
    __shared__ double sums[(N_SAMPLES / STRIDE + 1) * 2 * N_PIXELS];
#endif
    __syncthreads();
    if (column >= N_PIXELS || pixel >= plane) return;
    const Ranked value = {sorted + column};
    const int m = counts[column];
    const long long step = channels * plane;
    float* to = planes + c * plane + pixel;
#if METHOD == MODELLED
#if N_LANES > 1
    sum = sums[column];
#endif
    describe(value, m, sum, to_sigma, to, step);
#else
    Range range = {0, m};
#if METHOD == KAPPA
    if (m >= 3) range = kappa_range(value, m, kappa_low, kappa_high, iterations);
#elif METHOD == WINSORIZED
    if (m >= 3)
        range = winsorized_range(
            value, m, kappa_low, kappa_high, iterations, limit_low, limit_high, sums + column);
#else
    if (m >= 3) range = linear_fit_range(value, m, kappa_low, kappa_high, iterations);
#endif
    to[0] = range.last > range.first ? value[range.first] : -INF;
    to[step] = range.last > range.first ? value[range.last - 1] : INF;
#endif
}

#endif

struct Bounds {
    float low, high, curve;
};

struct Model {
    float steep_share, few_steps, few_curves, blur_share, kappa_low, kappa_high;
};

INLINE float or_zero(float v)
{
    return v == v ? v : 0.0f;
}

// The bounds of a pixel, and its curvature less what noise may have made of it; the image continues flat beyond
// the rectangle, and there is no step to a missing neighbour.
INLINE Bounds bounds_of(
    const float* __restrict__ planes, long long step, long long at, int y, int x, int ny, int nx,
    const Model& model)
{
#if METHOD == NONE
    return {-INF, INF, 0.0f};
#elif METHOD != MODELLED
    return {planes[at], planes[at + step], 0.0f};
#else
    const float here = planes[at], above = planes[y > 0 ? at - nx : at], below = planes[y + 1 < ny ? at + nx : at];
    const float left = planes[x > 0 ? at - 1 : at], right = planes[x + 1 < nx ? at + 1 : at];
    float slope = fmaxf(or_zero(fabsf(above - here)), or_zero(fabsf(below - here)));
    slope = fmaxf(slope, fmaxf(or_zero(fabsf(left - here)), or_zero(fabsf(right - here))));
    const float across = x > 0 && x + 1 < nx ? (left - here) + (right - here) : 0.0f;
    float curve = or_zero(0.5f * (across + ((above - here) + (below - here))));
    const float variance = planes[at + step], mean_blur = planes[at + 2 * step];
    const float span = planes[at + 3 * step], m = planes[at + 4 * step];
    const float few = variance / fmaxf(m, 1.0f);
    const float steep = slope * slope - model.few_steps * few, bent = curve * curve - model.few_curves * few;
    const float sigma = sqrtf(variance + model.steep_share * (steep > 0.0f ? steep : 0.0f));
    const float size = bent > 0.0f ? sqrtf(bent) : 0.0f;
    curve = curve > 0.0f ? size : -size;
    if (m <= 2.0f) return {-INF, INF, m > 0.0f ? curve : 0.0f};
    const float centre = here - mean_blur * curve, room = model.blur_share * span * fabsf(curve);
    return {centre - (model.kappa_low * sigma + room), centre + (model.kappa_high * sigma + room), curve};
#endif
}

// Weight and blur of AHEAD frames, to be loaded at once.
struct alignas(16) Several {
    double weight[AHEAD];
    float blur[AHEAD];
};
static_assert(sizeof(Several) == 12 * AHEAD, "the host packs them without gaps");

// A sample as it would be with the usual blur.
INLINE float matched(float value, float blur, const Bounds& range)
{
#if METHOD == MODELLED
    return value - blur * range.curve;
#else
    return value;
#endif
}

// Ask for a pixel's samples of the next AHEAD frames, of `left` at most; beyond the last frame there is no data.
INLINE void load(const float*& from, int left, long long next, float (&value)[AHEAD])
{
#pragma unroll
    for (int k = 0; k < AHEAD; ++k, from += next) value[k] = k < left ? *from : NOT_A_NUMBER;
}

// Combine the samples within bounds of channel blockIdx.y to their weighted mean, in frame order.
// `planes` is what `bounds` filled; `several` (c, N_SAMPLES / AHEAD), `pixel_weight` (n, ny, nx); the results
// (c, my, mx), `counts` (3, c, my, mx) and `tally` (n, 3) are of the pixels from row y0, column x0 on. A block
// takes pixels in turn.
extern "C" __global__ void __launch_bounds__(BLOCK) combine(
    const float* __restrict__ data, int n, int channels, int ny, int nx, const float* __restrict__ planes,
    const Several* __restrict__ several,
#if WEIGHED
    const float* __restrict__ pixel_weight,
#endif
    float steep_share, float few_steps,
    float few_curves, float blur_share, float kappa_low, float kappa_high, int y0, int x0, int my, int mx,
    float* __restrict__ image, float* __restrict__ weight_out, int* __restrict__ counts, unsigned long long* tally)
{
    __shared__ int fates[3 * N_SAMPLES];
    for (int k = threadIdx.x; k < 3 * n; k += BLOCK) fates[k] = 0;
    __syncthreads();
    const Model model = {steep_share, few_steps, few_curves, blur_share, kappa_low, kappa_high};
    const int c = blockIdx.y, lane = threadIdx.x % 32, size = my * mx;
    const long long plane = (long long)ny * nx, next = channels * plane;
    several += c * (N_SAMPLES / AHEAD);
    for (long long first = (long long)blockIdx.x * BLOCK; first < size; first += (long long)gridDim.x * BLOCK) {
        const int pixel = (int)first + threadIdx.x;
        const bool inside = pixel < size;
        const int y = inside ? pixel / mx + y0 : y0, x = inside ? pixel % mx + x0 : x0;
        const long long at = c * plane + (long long)y * nx + x;
        Bounds range = {NOT_A_NUMBER, NOT_A_NUMBER, 0.0f};  // beyond the rectangle nothing is good, low or high
        if (inside) range = bounds_of(planes, next, at, y, x, ny, nx, model);
        double total = 0.0, weights = 0.0;
        int kept = 0, n_low = 0, n_high = 0;
        const float* from = data + at;
#if WEIGHED
        const float* of_weight = pixel_weight + (long long)y * nx + x;
#endif
        float coming[AHEAD];
        load(from, n, next, coming);
        for (int f = 0; f < n; f += AHEAD) {
            float value[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) value[k] = coming[k];
            load(from, n - f - AHEAD, next, coming);
            const Several of_frames = several[f / AHEAD];
            unsigned good_lanes = 0, bad = 0;  // lanes of frame f + lane, frames of this thread
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) {
                double w = of_frames.weight[k];
#if WEIGHED
                w *= (double)(f + k < n ? of_weight[(f + k) * plane] : 0.0f);
#endif
                const float held = matched(value[k], of_frames.blur[k], range);
                const bool good = range.low <= held && held <= range.high;
                if (good) {
                    total += w * (double)value[k];
                    weights += w;
                    ++kept;
                }
                bad |= !good && held == held ? 1u << k : 0u;
                const unsigned lanes = __ballot_sync(ALL_LANES, good);
                if (lane == k) good_lanes = lanes;
            }
            if (lane < AHEAD && good_lanes) atomicAdd(fates + 3 * (f + lane), __popc(good_lanes));
            if (!bad) continue;
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) {
                const float held = matched(value[k], of_frames.blur[k], range);
                const bool under = bad >> k & 1 && held < range.low, over = bad >> k & 1 && held > range.high;
                n_low += under;
                n_high += over;
                if (under || over) atomicAdd(fates + 3 * (f + k) + (under ? 1 : 2), 1);
            }
        }
        if (!inside) continue;
        const long long out = (long long)c * size + pixel, third = (long long)channels * size;
        image[out] = weights > 0.0 ? (float)(total / weights) : NOT_A_NUMBER;
        weight_out[out] = (float)weights;
        counts[out] = kept;
        counts[out + third] = n_low;
        counts[out + 2 * third] = n_high;
    }
    __syncthreads();
    for (int k = threadIdx.x; k < 3 * n; k += BLOCK)
        if (fates[k]) atomicAdd(tally + k, (unsigned long long)fates[k]);
}
