// What prepares and resamples one frame, see `zemosaic_frame_cuda`, which defines BLOCK, the threads of a block,
// before this.

#define INLINE __device__ __forceinline__
#define KERNEL extern "C" __global__ void __launch_bounds__(BLOCK)
#define NOT_A_NUMBER __int_as_float(0x7fc00000)
#define INF __int_as_float(0x7f800000)
#define FRACTION_BITS 12
#define FRACTIONS (1 << FRACTION_BITS)

// Every pixel that is this thread's to do.
#define FOR_PIXELS(ROW, COLUMN, N_ROWS, N_COLUMNS) \
    const int COLUMN = blockIdx.x * BLOCK + threadIdx.x; \
    if (COLUMN < (N_COLUMNS)) \
        for (int ROW = blockIdx.y; ROW < (N_ROWS); ROW += gridDim.y)

// --- the raw frame ---------------------------------------------------------------------------------------------

INLINE int colour_at(int colours, int y, int x) { return colours >> 2 * (2 * (y & 1) + (x & 1)) & 3; }

INLINE bool is_finite(float v) { return v - v == 0.0f; }

INLINE double of_three(int k, double a, double b, double c) { return k == 0 ? a : k == 1 ? b : c; }

// `rows` (c, terms, ny) and `columns` (nx): a polynomial of the column whose coefficients belong to the row.
KERNEL flattened(
    int ny, int nx, const float* __restrict__ raw, int colours, const double* __restrict__ rows, int channels,
    int terms, const double* __restrict__ columns, double pedestal, float* __restrict__ out)
{
    FOR_PIXELS(y, x, ny, nx)
    {
        const double* powers = rows + (long long)colour_at(colours, y, x) * terms * ny + y;
        double factor = powers[(long long)(terms - 1) * ny];
        for (int k = terms - 2; k >= 0; --k) factor = factor * columns[x] + powers[(long long)k * ny];
        const long long at = (long long)y * nx + x;
        out[at] = (float)((raw[at] - pedestal) * factor + pedestal);
    }
}

INLINE void exchange(float& a, float& b)
{
    const float smaller = fminf(a, b);
    b = fmaxf(a, b);
    a = smaller;
}

// Median of the pixels of the same colour around a pixel; its own value if there is none.
// Source of the network: odd-even merge sort, K. E. Batcher (1968).
INLINE float same_colour_median(const float* __restrict__ raw, int ny, int nx, int y, int x, int step)
{
    float v[8];
    int count = 0;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
        const int place = k < 4 ? k : k + 1;
        const int j = y + (place / 3 - 1) * step, i = x + (place % 3 - 1) * step;
        const bool inside = j >= 0 && j < ny && i >= 0 && i < nx;
        const float value = inside ? raw[(long long)j * nx + i] : INF;
        const bool there = is_finite(value);
        v[k] = there ? value : INF;
        count += there;
    }
    exchange(v[0], v[1]), exchange(v[2], v[3]), exchange(v[4], v[5]), exchange(v[6], v[7]);
    exchange(v[0], v[2]), exchange(v[1], v[3]), exchange(v[4], v[6]), exchange(v[5], v[7]);
    exchange(v[1], v[2]), exchange(v[5], v[6]);
    exchange(v[0], v[4]), exchange(v[1], v[5]), exchange(v[2], v[6]), exchange(v[3], v[7]);
    exchange(v[2], v[4]), exchange(v[3], v[5]);
    exchange(v[1], v[2]), exchange(v[3], v[4]), exchange(v[5], v[6]);
    float lower = v[0], upper = v[0];
#pragma unroll
    for (int k = 1; k < 5; ++k) {
        lower = count > 2 * k ? v[k] : lower;
        upper = count >= 2 * k ? v[k] : upper;
    }
    return count > 0 ? (lower + upper) * 0.5f : raw[(long long)y * nx + x];
}

KERNEL replace_isolated(
    int ny, int nx, const float* __restrict__ raw, int colours, double sky0, double sky1, double sky2,
    double limit0, double limit1, double limit2, float* __restrict__ out)
{
    FOR_PIXELS(y, x, ny, nx)
    {
        const long long at = (long long)y * nx + x;
        const int colour = colour_at(colours, y, x);
        const float own = raw[at];
        const double excess = own - of_three(colour, sky0, sky1, sky2);
        float value = own;
        if (fabs(excess) > of_three(colour, limit0, limit1, limit2)) {
            double total = 0.0;
            int count = 0;
            for (int k = 0; k < 4; ++k) {
                const int j = y + (k == 0 ? -1 : k == 1), i = x + (k == 2 ? -1 : k == 3);
                if (j < 0 || j >= ny || i < 0 || i >= nx) continue;
                const float beside = raw[(long long)j * nx + i];
                if (!is_finite(beside)) continue;
                total += beside - of_three(colour_at(colours, j, i), sky0, sky1, sky2);
                ++count;
            }
            const bool shared = !count || total / count > 0.15 * excess;
            const int step = colour_at(colours, 0, 0) == colour_at(colours, 0, 1) ? 1 : 2;
            if (!(excess > 0.0 && shared)) value = same_colour_median(raw, ny, nx, y, x, step);
        }
        out[at] = value;
    }
}

// Mirror an index at the border without repeating the border pixel.
INLINE int reflected(int index, int size)
{
    index = index < 0 ? -index : index;
    index = index >= size ? 2 * (size - 1) - index : index;
    return index < 0 ? 0 : index < size ? index : size - 1;
}

// Source: H. S. Malvar, L. He, R. Cutler (2004), see `zemosaic_preprocess.demosaic`.
KERNEL demosaic(int ny, int nx, const float* __restrict__ raw, int colours, float* __restrict__ out)
{
    FOR_PIXELS(y, x, ny, nx)
    {
        const auto p = [&](int dy, int dx) {
            return raw[(long long)reflected(y + dy, ny) * nx + reflected(x + dx, nx)];
        };
        const float centre = p(0, 0), side = p(0, -1) + p(0, 1), above = p(-1, 0) + p(1, 0);
        const float diagonal = p(-1, -1) + p(-1, 1) + p(1, -1) + p(1, 1);
        const float far_side = p(0, -2) + p(0, 2), far_above = p(-2, 0) + p(2, 0);
        const int colour = colour_at(colours, y, x);
        const long long at = (long long)y * nx + x, plane = (long long)ny * nx;
        const double wide = centre;
        if (colour == 1) {
            const int beside = colour_at(colours, y, x + 1);
            const double row = 5.0 * wide + 4.0 * side - diagonal - far_side + 0.5f * far_above;
            const double column = 5.0 * wide + 4.0 * above - diagonal - far_above + 0.5f * far_side;
            out[plane + at] = centre;
            out[beside * plane + at] = (float)(row * 0.125);
            out[(2 - beside) * plane + at] = (float)(column * 0.125);
        } else {
            const float far = far_side + far_above;
            out[colour * plane + at] = centre;
            out[plane + at] = (float)((4.0 * wide + 2.0 * (double)(side + above) - far) * 0.125);
            out[(2 - colour) * plane + at] = (float)((6.0 * wide + 2.0 * diagonal - 1.5f * far) * 0.125);
        }
    }
}

// --- the canvas ------------------------------------------------------------------------------------------------

// The pixel map: `nodes` (2, my, mx), frame x and y at every step-th canvas pixel from (row0, column0) on; the
// rectangle begins at canvas pixel (y0, x0).
#define MAP const double* __restrict__ nodes, int my, int mx, int row0, int column0, int step, int y0, int x0
#define POSITION(ROW, COLUMN) position_of(nodes, my, mx, step, (ROW) + y0 - row0, (COLUMN) + x0 - column0)

// `planes` (channels, height, width) from frame pixel (first_y, first_x) on, of a frame of size_y by size_x.
#define FRAME const float* __restrict__ planes, int channels, int height, int width, int first_y, int first_x, \
    int size_y, int size_x

struct Position {
    double x, y;

    INLINE bool inside(int size_y, int size_x) const
    {
        return x >= -0.5 && x < size_x - 0.5 && y >= -0.5 && y < size_y - 0.5;
    }
};

INLINE double between(const double* node, int mx, double down, double across)
{
    const double left = node[0] + down * (node[mx] - node[0]);
    const double right = node[1] + down * (node[mx + 1] - node[1]);
    return left + across * (right - left);
}

INLINE Position position_of(const double* __restrict__ nodes, int my, int mx, int step, int y, int x)
{
    const double down = (double)(y % step) / step, across = x % step * (1.0 / step);
    const double* node = nodes + (long long)(y / step) * mx + x / step;
    return {between(node, mx, down, across), between(node + (long long)my * mx, mx, down, across)};
}

INLINE int limited(int value, int size) { return value < 0 ? 0 : value < size ? value : size - 1; }

INLINE int quantised(double position) { return (int)floor(position * FRACTIONS + 0.5); }

// The pixel that a rounded position falls into; rounding pushes none out of the frame.
INLINE int nearest(int position, int size)
{
    return limited((position + FRACTIONS / 2 - 1) >> FRACTION_BITS, size);
}

// Weighted sum of 6 x 6 pixels, not less than the smallest of the central 4 x 4; no number if one of 6 x 8 is not
// finite, as in the compiled loop, which works on eight columns at a time.
INLINE double whole_lanczos(
    const float* __restrict__ first, int width, const float* __restrict__ across, const float* __restrict__ down)
{
    float smallest = INF;
    const auto column = [&](int i) {
        double sum = 0.0;
#pragma unroll
        for (int j = 0; j < 6; ++j) {
            const float value = first[(long long)j * width + i];
            sum += value * (double)down[j];
            if (i >= 1 && i <= 4 && j >= 1 && j <= 4) smallest = fminf(smallest, value);
        }
        return sum * across[i];
    };
    const auto beyond = [&](int i) {
        float nothing = 0.0f;
#pragma unroll
        for (int j = 0; j < 6; ++j) {
            const float value = first[(long long)j * width + i];
            nothing += value - value;
        }
        return (double)nothing;
    };
    const double even = (column(0) + column(4)) + (column(2) + beyond(6));
    const double odd = (column(1) + column(5)) + (column(3) + beyond(7));
    const double total = even + odd;
    return total < smallest ? smallest : total;
}

// Where taps are missing the weights of the present ones are scaled to 1; `near` if too little weight is left.
INLINE double sparse_lanczos(
    const float* __restrict__ plane, int height, int width, int first_y, int first_x,
    const float* __restrict__ across, const float* __restrict__ down, float near)
{
    double total = 0.0, weight = 0.0, smallest = INF;
    for (int j = 0; j < 6; ++j) {
        const int y = first_y + j;
        if (y < 0 || y >= height) continue;
        for (int i = 0; i < 6; ++i) {
            const int x = first_x + i;
            if (x < 0 || x >= width) continue;
            const float value = plane[(long long)y * width + x];
            if (value != value) continue;
            const double w = (double)down[j] * (double)across[i];
            total += w * value;
            weight += w;
            if (j >= 1 && j <= 4 && i >= 1 && i <= 4) smallest = value < smallest ? value : smallest;
        }
    }
    if (weight < 0.3) return near;
    const double mean = total / weight;
    return smallest > mean ? smallest : mean;
}

// `table` (4096, 8): weights of the taps for each fraction of a pixel.
KERNEL lanczos3(int ny, int nx, FRAME, MAP, const float* __restrict__ table, float* __restrict__ out)
{
    FOR_PIXELS(row, k, ny, nx)
    {
        const Position position = POSITION(row, k);
        const bool inside = position.inside(size_y, size_x);
        const int qy = inside ? quantised(position.y) : 0, qx = inside ? quantised(position.x) : 0;
        const int tap_y = (qy >> FRACTION_BITS) - 2, tap_x = (qx >> FRACTION_BITS) - 2;
        const float* down = table + 8 * (qy & (FRACTIONS - 1));
        const float* across = table + 8 * (qx & (FRACTIONS - 1));
        const bool whole = inside && tap_y >= 0 && tap_y < size_y - 5 && tap_x >= 0 && tap_x < size_x - 7;
        const int y = tap_y - first_y, x = tap_x - first_x;
        const int near_y = nearest(qy, size_y) - first_y, near_x = nearest(qx, size_x) - first_x;
        const bool known = inside && near_y >= 0 && near_y < height && near_x >= 0 && near_x < width;
        for (int c = 0; c < channels; ++c) {
            const float* plane = planes + (long long)c * height * width;
            double total = NOT_A_NUMBER;
            if (whole) total = whole_lanczos(plane + (long long)y * width + x, width, across, down);
            if (total != total && known) {
                const float near = plane[(long long)near_y * width + near_x];
                if (near == near) total = sparse_lanczos(plane, height, width, y, x, across, down, near);
            }
            out[((long long)c * ny + row) * nx + k] = (float)total;
        }
    }
}

INLINE double bilinear_of(
    const float* __restrict__ plane, int height, int width, int y, int x, double rest_y, double rest_x)
{
    double total = 0.0, weight = 0.0;
    for (int k = 0; k < 4; ++k) {
        const int j = y + k / 2, i = x + k % 2;
        if (j < 0 || j >= height || i < 0 || i >= width) continue;
        const float value = plane[(long long)j * width + i];
        if (value != value) continue;
        const double w = (k / 2 ? rest_y : 1.0 - rest_y) * (k % 2 ? rest_x : 1.0 - rest_x);
        total += w * value;
        weight += w;
    }
    return total / weight;
}

KERNEL bilinear(int ny, int nx, FRAME, MAP, float* __restrict__ out)
{
    FOR_PIXELS(row, k, ny, nx)
    {
        const Position position = POSITION(row, k);
        const bool inside = position.inside(size_y, size_x);
        const double floor_y = inside ? floor(position.y) : 0.0, floor_x = inside ? floor(position.x) : 0.0;
        const double rest_y = position.y - floor_y, rest_x = position.x - floor_x;
        const int y = (int)floor_y - first_y, x = (int)floor_x - first_x;
        const int near_y = y + (rest_y >= 0.5), near_x = x + (rest_x >= 0.5);
        const bool known = inside && near_y >= 0 && near_y < height && near_x >= 0 && near_x < width;
        for (int c = 0; c < channels; ++c) {
            const float* plane = planes + (long long)c * height * width;
            const float near = known ? plane[(long long)near_y * width + near_x] : NOT_A_NUMBER;
            double value = near;
            if (near == near) value = bilinear_of(plane, height, width, y, x, rest_y, rest_x);
            out[((long long)c * ny + row) * nx + k] = (float)value;
        }
    }
}

KERNEL feather(
    int ny, int nx, MAP, int size_y, int size_x, double reach, double least, const float* __restrict__ weight,
    float* __restrict__ out)
{
    FOR_PIXELS(row, k, ny, nx)
    {
        const Position position = POSITION(row, k);
        const double beside = fmin(position.x, size_x - 1.0 - position.x);
        const double distance = fmin(beside, fmin(position.y, size_y - 1.0 - position.y)) + 0.5;
        const long long at = (long long)row * nx + k;
        float value = weight[at];
        if (distance < reach) {
            const double share = fmax(distance / reach, 0.0);
            value = (float)(value * fmax(least, share * share * (3.0 - 2.0 * share)));
        }
        out[at] = value;
    }
}
