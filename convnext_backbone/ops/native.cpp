// What a block computes beside its matrix products, for a CPU: see native.py, which builds and calls this.
//
// Maps are (N, H, W, C) and rows (rows, C) in memory without gaps, in float32 or bfloat16; parameters and
// sums over positions are float32. Products and sums are in float32, each result is rounded once (in bfloat16
// what is below 2^-126 may become zero). Sums over rows depend on the number of threads in their last bits,
// nothing else does.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int L = 16;  // numbers of a vector
#else
constexpr int L = 8;
#endif
constexpr int K = 7, R = K / 2, TAPS = K * K;
constexpr long BAND = 32, STRIP = 32;  // rows and columns of a map that are taken at once

typedef float Vector __attribute__((vector_size(4 * L)));
typedef uint32_t Bits __attribute__((vector_size(4 * L)));
typedef uint16_t Half __attribute__((vector_size(2 * L)));
typedef uint16_t bfloat16;

inline Vector load(const float *p) {
    Vector v;
    memcpy(&v, p, sizeof v);
    return v;
}

inline Vector load(const bfloat16 *p) {
    Half half;
    memcpy(&half, p, sizeof half);
#ifdef __AVX512F__  // which GCC 12 does in halves
    return (Vector)(Bits)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)half), 16);
#else
    return (Vector)(__builtin_convertvector(half, Bits) << 16);
#endif
}

inline void store(float *p, Vector v) { memcpy(p, &v, sizeof v); }

// To the nearest, of two the even one; NaN stays NaN.
inline void store(bfloat16 *p, Vector v) {
#ifdef __AVX512BF16__
    const __m256bh half = _mm512_cvtneps_pbh((__m512)v);
#else
    const Bits bits = (Bits)v, nan = (Bits)(v != v);
    const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Half half = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), Half);
#endif
    memcpy(p, &half, sizeof half);
}

inline float sum(Vector v) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)v);
#else
    float total = 0;
    for (int l = 0; l < L; l++) total += v[l];
    return total;
#endif
}

inline Vector clamp(Vector v, float bound) {  // to [-bound, bound]
    const Vector high = Vector{} + bound;
#ifdef __AVX512F__
    return (Vector)_mm512_max_ps(_mm512_min_ps((__m512)v, (__m512)high), (__m512)-high);
#else
    v = v < high ? v : high;
    return v > -high ? v : -high;
#endif
}

// The first n of a vector; the others are zero.
template <class T>
inline Vector load(const T *p, long n) {
    if (n >= L) return load(p);
    T part[L] = {};
    memcpy(part, p, n * sizeof(T));
    return load(part);
}

template <class T>
inline void store(T *p, Vector v, long n) {
    if (n >= L) return store(p, v);
    T part[L];
    store(part, v);
    memcpy(p, part, n * sizeof(T));
}

struct alignas(4 * L) Line {
    float v[L];
};

// Memory of a thread, kept between calls: from the system it would come page by page each time.
float *scratch(size_t floats) {
    static thread_local std::vector<Line> memory;
    if (memory.size() * L < floats) memory.resize((floats + L - 1) / L);
    return memory.data()->v;
}

// ---- depthwise convolution, 7 x 7
//
// Two vectors of channels at a time (in bfloat16 a line of the cache), and of them the last K rows of input,
// or as much of those as a strip of the map needs, as float32.

struct Task {  // a part of a map of which one thread has two vectors of channels
    long image, c, top, bottom, left, right;
};

struct Tasks {
    long height, width, pairs, bands, rows, strips, columns, count;

    Tasks(long N, long height, long width, long C, long multiple) : height(height), width(width) {
        pairs = (C + 2 * L - 1) / (2 * L);
        bands = (height + BAND - 1) / BAND;
        rows = (height + bands - 1) / bands;
        strips = (width + STRIP - 1) / STRIP;
        columns = ((width + strips - 1) / strips + multiple - 1) / multiple * multiple;
        count = N * bands * strips * pairs;
    }

    long parts() const { return count / pairs; }

    Task operator[](long i) const {
        const long c = i % pairs * 2 * L, left = i / pairs % strips * columns;
        const long top = i / pairs / strips % bands * rows, image = i / pairs / strips / bands;
        return {image, c, top, std::min(height, top + rows), left, std::min(width, left + columns)};
    }
};

// Row y of an image, `columns` columns from `left` on, two vectors of channels from c on, the second behind
// the columns of the first; zeros outside the image.
template <class T>
void read_row(const T *image, long height, long width, long C, long c, long y, long left, long columns,
              float *out) {
    long from = std::min(columns, std::max(0L, -left)), to = std::max(from, std::min(columns, width - left));
    if (y < 0 || y >= height) from = to = columns;
    const T *in = image + (y * width + left) * C + c;
    float *second = out + columns * L;
    for (float *half : {out, second}) {
        memset(half, 0, from * L * sizeof(float));
        memset(half + to * L, 0, (columns - to) * L * sizeof(float));
    }
    if (c + 2 * L <= C)
        for (long j = from; j < to; j++) {
            store(out + j * L, load(in + j * C));
            store(second + j * L, load(in + j * C + L));
        }
    else
        for (long j = from; j < to; j++) {
            store(out + j * L, load(in + j * C, C - c));
            if (c + L < C) store(second + j * L, load(in + j * C + L, C - c - L));
        }
}

// T neighbouring results.
template <int T>
inline void convolve(const float *const *rows, long offset, const Line *weight, Vector *out) {
    Vector sums[T];
#pragma GCC unroll 16
    for (int j = 0; j < T; j++) sums[j] = load(weight[TAPS].v);
    for (int ky = 0; ky < K; ky++, weight += K) {
        const float *row = rows[ky] + offset;
        Vector w[K];
#pragma GCC unroll 16
        for (int kx = 0; kx < K; kx++) w[kx] = load(weight[kx].v);
#pragma GCC unroll 32
        for (int i = 0; i < T + K - 1; i++) {
            const Vector x = load(row + i * L);
#pragma GCC unroll 16
            for (int kx = 0; kx < K; kx++)
                if (i >= kx && i < T + kx) sums[i - kx] += x * w[kx];
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < T; j++) out[j] = sums[j];
}

template <int T, class I, class O>
void convolution(const I *x, const float *weight, const float *bias, O *y, long N, long height, long width,
                 long C, int threads) {
    const Tasks tasks(N, height, width, C, T);
    // of each vector of channels the taps, then the bias
    std::vector<Line> weights(tasks.pairs * 2 * (TAPS + 1));
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (long g = 0; g < tasks.pairs * 2; g++)
            for (long c = g * L; c < std::min(C, (g + 1) * L); c++) {
                Line *taps = &weights[g * (TAPS + 1)];
                for (int k = 0; k < TAPS; k++) taps[k].v[c - g * L] = weight[c * TAPS + k];
                taps[TAPS].v[c - g * L] = bias ? bias[c] : 0;
            }
        const long across = tasks.columns + K - 1;
        float *window = scratch(K * 2 * across * L);
#pragma omp for
        for (long i = 0; i < tasks.count; i++) {
            const Task t = tasks[i];
            const I *in = x + t.image * height * width * C;
            for (long row = t.top - R; row < t.bottom + R; row++) {
                const long slot = (row - t.top + R) % K, h = row - R;
                read_row(in, height, width, C, t.c, row, t.left - R, across, window + slot * 2 * across * L);
                if (h < t.top) continue;
                const float *rows[K];
                for (int ky = 0; ky < K; ky++) rows[ky] = window + (slot + 1 + ky) % K * 2 * across * L;
                for (int half = 0; half < 2 && t.c + half * L < C; half++) {
                    const Line *taps = &weights[(t.c / L + half) * (TAPS + 1)];
                    const long n = C - t.c - half * L;
                    O *out = y + ((t.image * height + h) * width + t.left) * C + t.c + half * L;
                    for (long j = 0; j < t.right - t.left; j += T) {
                        Vector found[T];
                        convolve<T>(rows, (half * across + j) * L, taps, found);
                        for (long k = 0; k < std::min<long>(T, t.right - t.left - j); k++)
                            store(out + (j + k) * C, found[k], n);
                    }
                }
            }
        }
    }
}

template <class T>
void convolution_gradient(const T *x, const T *grad, float *dweight, float *dbias, long N, long height,
                          long width, long C, int threads) {
    const Tasks tasks(N, height, width, C, 1);
    std::vector<Line> found(tasks.count * 2 * (TAPS + 1));
#pragma omp parallel num_threads(threads)
    {
        const long columns = tasks.columns, across = columns + K - 1;
        float *window = scratch((K * 2 * across + 2 * columns) * L), *line = window + K * 2 * across * L;
#pragma omp for
        for (long i = 0; i < tasks.count; i++) {
            const Task t = tasks[i];
            const long image = t.image * height * width * C;
            for (long row = t.top - R; row < t.bottom + R; row++) {
                const long slot = (row - t.top + R) % K, h = row - R;
                read_row(x + image, height, width, C, t.c, row, t.left - R, across,
                         window + slot * 2 * across * L);
                if (h < t.top) continue;
                read_row(grad + image, height, width, C, t.c, h, t.left, columns, line);
                for (int half = 0; half < 2 && t.c + half * L < C; half++) {
                    Line *sums = &found[(i * 2 + half) * (TAPS + 1)];
                    const float *d = line + half * columns * L;
                    Vector bias = load(sums[TAPS].v);
                    for (long j = 0; j < columns; j++) bias += load(d + j * L);
                    store(sums[TAPS].v, bias);
                    for (int ky = 0; ky < K; ky++, sums += K) {
                        const float *p = window + ((slot + 1 + ky) % K * 2 + half) * across * L;
                        Vector taps[K];
#pragma GCC unroll 16
                        for (int kx = 0; kx < K; kx++) taps[kx] = load(sums[kx].v);
                        for (long j = 0; j < columns; j++) {
                            const Vector g = load(d + j * L);
#pragma GCC unroll 16
                            for (int kx = 0; kx < K; kx++) taps[kx] += g * load(p + (j + kx) * L);
                        }
#pragma GCC unroll 16
                        for (int kx = 0; kx < K; kx++) store(sums[kx].v, taps[kx]);
                    }
                }
            }
        }
#pragma omp for
        for (long g = 0; g < tasks.pairs * 2; g++)
            for (int k = 0; k <= TAPS; k++) {
                Vector total = {};
                for (long part = 0; part < tasks.parts(); part++)
                    total += load(found[(part * tasks.pairs * 2 + g) * (TAPS + 1) + k].v);
                for (long c = g * L; c < std::min(C, (g + 1) * L); c++)
                    (k < TAPS ? dweight[c * TAPS + k] : dbias[c]) = total[c - g * L];
            }
    }
}

// ---- norm, GELU, sum

struct Moments {
    float mean, rstd;
};

template <class T>
inline Moments moments(const T *x, long C, float eps) {
    Vector total = {}, squares = {};
    for (long c = 0; c < C; c += L) total += load(x + c, C - c);
    const float mean = sum(total) / C;
    long c = 0;
    for (; c + L <= C; c += L) {
        const Vector d = load(x + c) - mean;
        squares += d * d;
    }
    float square = sum(squares);
    if (c < C) {
        const Vector rest = load(x + c, C - c);
        for (long l = 0; l < C - c; l++) square += (rest[l] - mean) * (rest[l] - mean);
    }
    return {mean, 1 / __builtin_sqrtf(square / C + eps)};
}

template <class T>
void norm(const T *x, const float *weight, const float *bias, T *y, long rows, long C, float eps,
          int threads) {
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row++) {
        const T *in = x + row * C;
        const Moments m = moments(in, C, eps);
        for (long c = 0; c < C; c += L) {
            Vector v = (load(in + c, C - c) - m.mean) * m.rstd;
            if (weight) v *= load(weight + c, C - c);
            if (bias) v += load(bias + c, C - c);
            store(y + row * C + c, v, C - c);
        }
    }
}

// body(from, to, sums) for the rows of each thread, with sums of its own, which are added to `out`.
template <class Body>
void over_rows(long rows, long floats, float *out, int threads, const Body &body) {
    const long size = (floats + L - 1) / L * L + L;  // of a thread: no line of the cache is another's, too
    std::vector<float> sums(threads * size);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int share = 0; share < threads; share++) {
        const Body own = body;
        own(rows * share / threads, rows * (share + 1) / threads, &sums[share * size]);
    }
    for (int share = 0; share < threads; share++)
        for (long i = 0; i < floats; i++) out[i] += sums[share * size + i];
}

inline void add(float *sums, Vector v, long n) { store(sums, load(sums, n) + v, n); }

// To `sums` the gradients of weight and of bias are added, (2, C).
template <class T>
void norm_gradient(const T *grad, const T *x, const float *weight, T *dx, float *sums, long rows, long C,
                   float eps, int threads) {
    over_rows(rows, 2 * C, sums, threads, [=](long from, long to, float *found) {
        for (long row = from; row < to; row++) {
            const T *in = x + row * C, *g = grad + row * C;
            const Moments m = moments(in, C, eps);
            Vector first = {}, second = {};
            for (long c = 0; c < C; c += L) {
                Vector d = load(g + c, C - c);
                const Vector normed = (load(in + c, C - c) - m.mean) * m.rstd;
                add(found + c, d * normed, C - c);
                add(found + C + c, d, C - c);
                if (weight) d *= load(weight + c, C - c);
                first += d;
                second += d * normed;
            }
            const float along = sum(first) / C, across = sum(second) / C;
            for (long c = 0; c < C; c += L) {
                Vector d = load(g + c, C - c);
                if (weight) d *= load(weight + c, C - c);
                const Vector normed = (load(in + c, C - c) - m.mean) * m.rstd;
                store(dx + row * C + c, (d - along - normed * across) * m.rstd, C - c);
            }
        }
    });
}

// The normal distribution function and the derivative of x times it are 1/2 + x P(2 x^2 / LIMIT^2 - 1), with
// the P of least absolute error of the whole on [-LIMIT, LIMIT]; 0 below, what it is at LIMIT above. Errors
// of 1e-7 and 6e-7 for float32, 3e-6 and 7e-5 for bfloat16 (whose own roundings are of 4e-3).
template <class T>
struct Gelu;

template <>
struct Gelu<float> {
    static constexpr float LIMIT = 5.5f;
    static constexpr float DISTRIBUTION[] = {0.000538067704f, -0.00136882546f, 0.0010238789f, -0.00122941264f,
                                             0.0042363331f,   -0.00767465719f, 0.0104686518f, -0.0146713729f,
                                             0.0202879712f,   -0.0261124668f,  0.0320817428f, -0.038787267f,
                                             0.0477369896f,   -0.0641724751f,  0.128551937f};
    static constexpr float DERIVATIVE[] = {-0.00490974541f, 0.0121202094f, -0.00642533626f, 0.00410083205f,
                                           -0.0278230156f,  0.0495662909f, -0.0530865637f,  0.0606565242f,
                                           -0.0729193114f,  0.0753351513f, -0.0688571862f,  0.0601872334f,
                                           -0.053725822f,   0.0536708725f, -0.0657401401f,  0.128759168f};
};

template <>
struct Gelu<bfloat16> {
    static constexpr float LIMIT = 4.5f;
    static constexpr float DISTRIBUTION[] = {
        0.000819328268f, -0.00225915444f, 0.00307924483f, -0.00541326402f, 0.0111570176f, -0.0189148205f,
        0.0283720815f,   -0.0401344764f,  0.0546917515f,  -0.0771922821f,  0.156905088f};
    static constexpr float DERIVATIVE[] = {-0.0247227807f, 0.055966824f, -0.0454848276f, 0.0477330928f,
                                           -0.0877572617f, 0.105038741f, -0.0953678836f, 0.086185966f,
                                           -0.0899229859f, 0.159445755f};
};

// Of B vectors at a time: one alone would wait for each product of the last.
template <int B, size_t N>
__attribute__((always_inline)) inline void step(const float (&coefficients)[N], float limit, const Vector *x,
                                                Vector *out) {
    Vector u[B], p[B];
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) {
        const Vector inside = clamp(x[b], limit);
        u[b] = inside * inside * (2 / (limit * limit)) - 1;
        p[b] = Vector{} + coefficients[0];
    }
#pragma GCC unroll 16
    for (size_t i = 1; i < N; i++)
#pragma GCC unroll 8
        for (int b = 0; b < B; b++) p[b] = p[b] * u[b] + coefficients[i];
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) {
        const Vector found = clamp(x[b], limit) * p[b] + 0.5f;
        out[b] = x[b] < -limit ? Vector{} : found;
    }
}

template <int B, class T>
__attribute__((always_inline)) inline void gelu(const T *x, T *y, long n) {
    Vector v[B], found[B];
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) v[b] = load(x + b * L, n);
    step<B>(Gelu<T>::DISTRIBUTION, Gelu<T>::LIMIT, v, found);
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) store(y + b * L, v[b] * found[b], n);
}

template <int B, class T>
__attribute__((always_inline)) inline void gelu_gradient(T *grad, const T *x, T *y, float *sums, long n) {
    gelu<B>(x, y, n);
    Vector v[B], found[B];
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) v[b] = load(x + b * L, n);
    step<B>(Gelu<T>::DERIVATIVE, Gelu<T>::LIMIT, v, found);
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) {
        const Vector d = load(grad + b * L, n) * found[b];
        store(grad + b * L, d, n);
        add(sums + b * L, d, n);
    }
}

template <class T>
void gelu(const T *x, T *y, long count, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < count; i += 4 * L)
        if (count - i >= 4 * L)
            gelu<4>(x + i, y + i, L);
        else
            for (long j = i; j < count; j += L) gelu<1>(x + j, y + j, count - j);
}

// GELU of x into y; grad times its derivative over grad; the sum of that over the rows to `sums`, (C).
template <class T>
void gelu_gradient(T *grad, const T *x, T *y, float *sums, long rows, long C, int threads) {
    over_rows(rows, C, sums, threads, [=](long from, long to, float *found) {
        for (long row = from; row < to; row++) {
            const long i = row * C;
            long c = 0;
            for (; c + 4 * L <= C; c += 4 * L)
                gelu_gradient<4>(grad + i + c, x + i + c, y + i + c, found + c, L);
            for (; c < C; c += L) gelu_gradient<1>(grad + i + c, x + i + c, y + i + c, found + c, C - c);
        }
    });
}

// residual + scale gain x; `scale` of each `of_sample` rows, counted from row `first` of the sample.
template <class T, class O>
void branch_sum(const O *residual, const T *x, const float *gain, const float *scale, O *y, long rows, long C,
                long first, long of_sample, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row++) {
        const float factor = scale ? scale[(first + row) / of_sample] : 1;
        for (long c = 0; c < C; c += L) {
            const long i = row * C + c;
            Vector v = load(x + i, C - c) * factor;
            if (gain) v *= load(gain + c, C - c);
            store(y + i, load(residual + i, C - c) + v, C - c);
        }
    }
}

// scale grad into `scaled`, gain scale grad into `gained` (each if given), the sum of the first over rows to
// `sums`.
template <class T, class O>
void branch_gradient(const O *grad, const float *gain, const float *scale, T *scaled, T *gained, float *sums,
                     long rows, long C, long first, long of_sample, int threads) {
    over_rows(rows, C, sums, threads, [=](long from, long to, float *found) {
        for (long row = from; row < to; row++) {
            const float factor = scale ? scale[(first + row) / of_sample] : 1;
            for (long c = 0; c < C; c += L) {
                const long i = row * C + c;
                const Vector v = load(grad + i, C - c) * factor;
                add(found + c, v, C - c);
                if (scaled) store(scaled + i, v, C - c);
                if (gained) store(gained + i, v * load(gain + c, C - c), C - c);
            }
        }
    });
}

// Of a (C, D) product summed over rows: its dot products with the rows of `weight`, and it times gain.
template <class T, class O>
void gain_gradient(const O *outer, const T *weight, const float *gain, T *scaled, float *dots, long C, long D,
                   int threads) {
#pragma omp parallel for num_threads(threads)
    for (long c = 0; c < C; c++) {
        Vector dot = {};
        for (long d = 0; d < D; d += L) {
            const Vector v = load(outer + c * D + d, D - d);
            dot += v * load(weight + c * D + d, D - d);
            store(scaled + c * D + d, v * gain[c], D - d);
        }
        dots[c] = sum(dot);
    }
}

}  // namespace

// function(T()) with T the type of an array.
template <class Function>
void of_type(int low, const Function &function) {
    low ? function(bfloat16()) : function(float());
}

// `low`: whether arrays are bfloat16, else float32.
extern "C" {

void convnext_convolution(const void *x, const float *weight, const float *bias, void *y, long N, long H,
                          long W, long C, int x_low, int y_low, int threads) {
    const bool sevens = (W + 6) / 7 * 7 < (W + 7) / 8 * 8;  // fewer columns in vain
    of_type(x_low, [=](auto i) {
        of_type(y_low, [=](auto o) {
            typedef decltype(i) I;
            typedef decltype(o) O;
            const auto run = sevens ? convolution<7, I, O> : convolution<8, I, O>;
            run((const I *)x, weight, bias, (O *)y, N, H, W, C, threads);
        });
    });
}

void convnext_convolution_gradient(const void *x, const void *grad, float *dweight, float *dbias, long N,
                                   long H, long W, long C, int low, int threads) {
    of_type(low, [=](auto t) {
        typedef decltype(t) T;
        convolution_gradient((const T *)x, (const T *)grad, dweight, dbias, N, H, W, C, threads);
    });
}

void convnext_norm(const void *x, const float *weight, const float *bias, void *y, long rows, long C,
                   float eps, int low, int threads) {
    of_type(low, [=](auto t) {
        typedef decltype(t) T;
        norm((const T *)x, weight, bias, (T *)y, rows, C, eps, threads);
    });
}

void convnext_norm_gradient(const void *grad, const void *x, const float *weight, void *dx, float *sums,
                            long rows, long C, float eps, int low, int threads) {
    of_type(low, [=](auto t) {
        typedef decltype(t) T;
        norm_gradient((const T *)grad, (const T *)x, weight, (T *)dx, sums, rows, C, eps, threads);
    });
}

void convnext_gelu(const void *x, void *y, long count, int low, int threads) {
    of_type(low, [=](auto t) {
        typedef decltype(t) T;
        gelu((const T *)x, (T *)y, count, threads);
    });
}

void convnext_gelu_gradient(void *grad, const void *x, void *y, float *sums, long rows, long C, int low,
                            int threads) {
    of_type(low, [=](auto t) {
        typedef decltype(t) T;
        gelu_gradient((T *)grad, (const T *)x, (T *)y, sums, rows, C, threads);
    });
}

void convnext_branch_sum(const void *residual, const void *x, const float *gain, const float *scale, void *y,
                         long rows, long C, long first, long of_sample, int low, int y_low, int threads) {
    of_type(low, [=](auto t) {
        of_type(y_low, [=](auto o) {
            typedef decltype(t) T;
            typedef decltype(o) O;
            branch_sum((const O *)residual, (const T *)x, gain, scale, (O *)y, rows, C, first, of_sample,
                       threads);
        });
    });
}

void convnext_branch_gradient(const void *grad, const float *gain, const float *scale, void *scaled,
                              void *gained, float *sums, long rows, long C, long first, long of_sample,
                              int low, int grad_low, int threads) {
    of_type(low, [=](auto t) {
        of_type(grad_low, [=](auto o) {
            typedef decltype(t) T;
            typedef decltype(o) O;
            branch_gradient((const O *)grad, gain, scale, (T *)scaled, (T *)gained, sums, rows, C, first,
                            of_sample, threads);
        });
    });
}

void convnext_gain_gradient(const void *outer, const void *weight, const float *gain, void *scaled,
                            float *dots, long C, long D, int low, int outer_low, int threads) {
    of_type(low, [=](auto t) {
        of_type(outer_low, [=](auto o) {
            typedef decltype(t) T;
            typedef decltype(o) O;
            gain_gradient((const O *)outer, (const T *)weight, gain, (T *)scaled, dots, C, D, threads);
        });
    });
}
}
