// The mixing step of A3D with the scaling, shift and ReLU before it, in one pass over memory, forward and backward.
//
//     z[n, d, c, p] = relu(scale[c] x[n, d, c, p] + shift[c])    or x itself
//     y[n, k, c, p] = sum_d weight[d, k, c] z[n, d, c, p]        or z itself
//
// p counts the H * W pixels of a slice. Either the channels lie side by side in memory (channels_last) or the pixels
// do (planes); the dimension that does is called the lanes, the other one the rows. Nothing here knows PyTorch: the
// file is compiled once per instruction set and called through a plain C interface.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#ifdef __AVX__
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#else
inline int omp_get_thread_num() { return 0; }
inline int omp_get_num_threads() { return 1; }
#endif

// The tiles are fast when their loops are unrolled and their sizes known, which the compiler does not do by itself.
#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 4")

namespace {

struct bfloat16 {
  uint16_t bits;
};

// Vectors of 64 bytes; the compiler splits them where the machine has narrower ones.
typedef float FloatVector __attribute__((vector_size(64)));
typedef double DoubleVector __attribute__((vector_size(64)));
typedef uint32_t UintVector __attribute__((vector_size(64)));
typedef uint16_t ShortVector __attribute__((vector_size(32)));

template <class T>
struct Compute {
  using Scalar = float;
  using Vector = FloatVector;
};
template <>
struct Compute<double> {
  using Scalar = double;
  using Vector = DoubleVector;
};

template <class T>
constexpr int LANES = sizeof(typename Compute<T>::Vector) / sizeof(typename Compute<T>::Scalar);

template <class V, class T>
INLINE V load(const T* from, int lanes) {
  V v = {};
  if (lanes == int(sizeof(V) / sizeof(T)))
    std::memcpy(&v, from, sizeof(V));
  else
    for (int i = 0; i < lanes; ++i) v[i] = from[i];
  return v;
}
template <class V>
INLINE V load(const bfloat16* from, int lanes) {
  ShortVector half = {};
  if (lanes == LANES<bfloat16>)
    std::memcpy(&half, from, sizeof half);
  else
    for (int i = 0; i < lanes; ++i) half[i] = from[i].bits;
  UintVector wide = __builtin_convertvector(half, UintVector) << 16;
  V v;
  std::memcpy(&v, &wide, sizeof v);
  return v;
}

template <class V>
INLINE ShortVector rounded(V v) {
  UintVector wide;
  std::memcpy(&wide, &v, sizeof wide);
  const UintVector even = wide + 0x7fff + ((wide >> 16) & 1);  // to nearest, ties to even
  const UintVector nan = (wide >> 16) | 0x40;                  // rounding must not turn it into an infinity
  return __builtin_convertvector((wide & 0x7fffffff) > 0x7f800000 ? nan : even >> 16, ShortVector);
}

template <class V, class T>
INLINE void store(T* to, V v, int lanes) {
  if (lanes == int(sizeof(V) / sizeof(T)))
    std::memcpy(to, &v, sizeof(V));
  else
    for (int i = 0; i < lanes; ++i) to[i] = v[i];
}
template <class V>
INLINE void store(bfloat16* to, V v, int lanes) {
  const ShortVector half = rounded(v);
  if (lanes == LANES<bfloat16>)
    std::memcpy(to, &half, sizeof half);
  else
    for (int i = 0; i < lanes; ++i) to[i].bits = half[i];
}

// Past the cache: what is written is not read first, as it otherwise would be. `to` must be a multiple of a vector.
template <class V, class T>
INLINE void stream(T* to, V v) {
#if defined(__AVX512F__)
  __m512i all;
  std::memcpy(&all, &v, sizeof all);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), all);
#elif defined(__AVX__)
  __m256i half[2];
  std::memcpy(half, &v, sizeof half);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), half[0]);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to) + 1, half[1]);
#else
  store(to, v, int(sizeof(V) / sizeof(T)));
#endif
}
template <class V>
INLINE void stream(bfloat16* to, V v) {
#ifdef __AVX__
  const ShortVector half = rounded(v);
  __m256i all;
  std::memcpy(&all, &half, sizeof all);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), all);
#else
  store(to, v, LANES<bfloat16>);
#endif
}
INLINE void end_of_stream() {
#ifdef __AVX__
  _mm_sfence();
#endif
}

// A NaN stays one, as in PyTorch's ReLU.
template <class V>
INLINE V relu(V v) {
  return v < 0 ? V{} : v;
}

struct Strides {  // in elements; that of the lanes is 1
  int64_t n, d, row;
};

// Whether to stream a tensor that is written: it is too large for the cache, and every vector of it is aligned.
template <class T>
bool streamable(const T* to, Strides s, int64_t values, int64_t lanes) {
  constexpr int64_t LARGE = 16 << 20, VECTOR = LANES<T> * sizeof(T);
  auto aligned = [](int64_t bytes) { return bytes % VECTOR == 0; };
  return values * int64_t(sizeof(T)) >= LARGE && aligned(reinterpret_cast<intptr_t>(to)) && lanes % LANES<T> == 0 &&
         aligned(s.n * sizeof(T)) && aligned(s.d * sizeof(T)) && aligned(s.row * sizeof(T));
}

struct Problem {
  int64_t batch, slices, rows, lanes, channels;
  const void* weight;  // (slices, slices, channels), or null for none
  int64_t weight_n;    // elements from one sample's weight to the next one's, 0 for one weight
  const void* scale;   // (channels), or null for neither scale, shift nor ReLU
  const void* shift;
};

int64_t values(const Problem& p) { return p.batch * p.slices * p.rows * p.lanes; }

// The coefficients of a sample, in the order in which the tiles need them: per block of channels (channels_last) or per
// channel (planes) first the weight (slices x slices), then scale and shift.
template <class T, bool PLANES>
struct Coefficients {
  using S = typename Compute<T>::Scalar;
  using V = typename Compute<T>::Vector;
  static constexpr int L = PLANES ? 1 : LANES<T>;
  int64_t per_block;
  std::vector<S> values;

  Coefficients(const Problem& p, int64_t n) : per_block(p.slices * p.slices + 2) {
    int64_t blocks = (p.channels + L - 1) / L;
    values.assign(blocks * per_block * L, S(0));
    const S* weight = p.weight ? static_cast<const S*>(p.weight) + n * p.weight_n : nullptr;
    const S* scale = static_cast<const S*>(p.scale);
    const S* shift = static_cast<const S*>(p.shift);
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t c = b * L; c < std::min((b + 1) * L, p.channels); ++c) {
        S* at = &values[b * per_block * L + c - b * L];
        if (weight)
          for (int64_t i = 0; i < p.slices * p.slices; ++i) at[i * L] = weight[i * p.channels + c];
        if (scale) {
          at[(per_block - 2) * L] = scale[c];
          at[(per_block - 1) * L] = shift[c];
        }
      }
  }
  const S* block(int64_t b) const { return &values[b * per_block * L]; }
  static INLINE V get(const S* block, int64_t i) {
    if (PLANES) return V{} + block[i];
    return load<V>(block + i * L, LANES<T>);
  }
};

// What a tile is: `count` vectors of `lanes` values for each slice; `step` from one to the next.
template <class T>
struct Place {
  T* at;
  int64_t d, step;
};

constexpr int MAX_SLICES = 32, TILE = 4;

template <class T, int SLICES, bool PLANES>
INLINE void forward_tile(const Problem& p, Place<const T> x, Place<T> y, bool streaming,
                         const typename Compute<T>::Scalar* block, int count, int lanes) {
  using V = typename Compute<T>::Vector;
  using C = Coefficients<T, PLANES>;
  const int64_t D = SLICES ? SLICES : p.slices;
  V z[SLICES ? SLICES : MAX_SLICES][TILE];
  const V scale = p.scale ? C::get(block, D * D) : V{}, shift = p.scale ? C::get(block, D * D + 1) : V{};
  for (int64_t d = 0; d < D; ++d)
    UNROLL
    for (int j = 0; j < count; ++j) {
      const V value = load<V>(x.at + d * x.d + j * x.step, lanes);
      z[d][j] = p.scale ? relu(value * scale + shift) : value;
    }
  for (int64_t k = 0; k < D; ++k) {
    V sum[TILE] = {};
    if (p.weight) {
      for (int64_t d = 0; d < D; ++d) {
        V weight = C::get(block, d * D + k);
        UNROLL
        for (int j = 0; j < count; ++j) sum[j] += weight * z[d][j];
      }
    } else {
      UNROLL
      for (int j = 0; j < count; ++j) sum[j] = z[k][j];
    }
    UNROLL
    for (int j = 0; j < count; ++j) {
      T* to = y.at + k * y.d + j * y.step;
      streaming ? stream(to, sum[j]) : store(to, sum[j], lanes);
    }
  }
}

// At the end of the rows and lanes, where the sizes are not known to the compiler.
template <class T, bool PLANES>
__attribute__((noinline)) void partial_forward_tile(const Problem& p, Place<const T> x, Place<T> y,
                                                    const typename Compute<T>::Scalar* block, int count, int lanes) {
  forward_tile<T, 0, PLANES>(p, x, y, false, block, count, lanes);
}

// The work of a sample in chunks, which threads share: some rows, or with planes some lanes of one row. Sums are in the
// precision of the tiles over one chunk only, so that they stay accurate over any number of pixels.
template <bool PLANES>
struct Chunks {
  int64_t size, in_row, count;

  Chunks(const Problem& p, int64_t rows)
      : size(PLANES ? 4096 : rows),
        in_row((p.lanes + size - 1) / size),
        count(PLANES ? p.rows * in_row : (p.rows + size - 1) / size) {}
  int64_t row(int64_t chunk) const { return PLANES ? chunk / in_row : chunk * size; }
};

// Calls tile(row, lane, count, lanes) for all tiles of a chunk: with channels_last they are TILE rows high, with planes
// TILE vectors long.
template <class T, bool PLANES, class F>
INLINE void for_tiles(const Problem& p, const Chunks<PLANES>& chunks, int64_t chunk, F&& tile) {
  constexpr int L = LANES<T>;
  int64_t row = chunks.row(chunk);
  if (PLANES) {
    int64_t i = chunk % chunks.in_row * chunks.size;
    const int64_t last = std::min(i + chunks.size, p.lanes);
    for (; i + TILE * L <= last; i += TILE * L) tile(row, i, TILE, L);
    for (; i < last; i += L) tile(row, i, 1, int(std::min<int64_t>(L, last - i)));
  } else {
    const int64_t last = std::min(row + chunks.size, p.rows);
    for (; row + TILE <= last; row += TILE)
      for (int64_t i = 0; i < p.lanes; i += L) tile(row, i, TILE, int(std::min<int64_t>(L, p.lanes - i)));
    for (; row < last; ++row)
      for (int64_t i = 0; i < p.lanes; i += L) tile(row, i, 1, int(std::min<int64_t>(L, p.lanes - i)));
  }
}

// Adds up what the threads have, always in the same order: the same input gives the same bits.
inline void add_in_order(const std::vector<double>& mine, double* all) {
  for (int thread = 0; thread < omp_get_num_threads(); ++thread) {
#pragma omp barrier
    if (thread == omp_get_thread_num())
      for (size_t i = 0; i < mine.size(); ++i) all[i] += mine[i];
  }
#pragma omp barrier
}

template <class T, int SLICES, bool PLANES>
void forward(const Problem& p, const T* x, Strides xs, T* y, Strides ys) {
  constexpr int L = LANES<T>;
  const Chunks<PLANES> chunks(p, 64);
  std::vector<Coefficients<T, PLANES>> coefficients;
  for (int64_t n = 0; n < (p.weight_n ? p.batch : 1); ++n) coefficients.emplace_back(p, n);
  const bool streaming = static_cast<const T*>(y) != x && streamable(y, ys, values(p), p.lanes);
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t n = 0; n < p.batch; ++n)
    for (int64_t i = 0; i < chunks.count; ++i) {
      const auto& coefficient = coefficients[p.weight_n ? n : 0];
      for_tiles<T, PLANES>(p, chunks, i,
                           [&](int64_t row, int64_t lane, int count, int lanes) __attribute__((always_inline)) {
                             Place<const T> from{x + n * xs.n + row * xs.row + lane, xs.d, PLANES ? L : xs.row};
                             Place<T> to{y + n * ys.n + row * ys.row + lane, ys.d, PLANES ? L : ys.row};
                             const auto* block = coefficient.block(PLANES ? row : lane / L);
                             if (count == TILE && lanes == L)
                               forward_tile<T, SLICES, PLANES>(p, from, to, streaming, block, TILE, L);
                             else
                               partial_forward_tile<T, PLANES>(p, from, to, block, count, lanes);
                           });
      end_of_stream();
    }
}

// The gradients with respect to the coefficients are summed in the order of Coefficients.
template <class T, int SLICES, bool PLANES>
INLINE void backward_tile(const Problem& p, Place<const T> x, Place<const T> grad_y, Place<T> grad_x, bool accumulate,
                          bool streaming, const typename Compute<T>::Scalar* block, typename Compute<T>::Vector* sums, int count,
                          int lanes) {
  using V = typename Compute<T>::Vector;
  using C = Coefficients<T, PLANES>;
  const int64_t D = SLICES ? SLICES : p.slices;
  V grad_y_of[SLICES ? SLICES : MAX_SLICES][TILE];
  for (int64_t k = 0; k < D; ++k)
    UNROLL
    for (int j = 0; j < count; ++j) grad_y_of[k][j] = load<V>(grad_y.at + k * grad_y.d + j * grad_y.step, lanes);
  const V scale = p.scale ? C::get(block, D * D) : V{}, shift = p.scale ? C::get(block, D * D + 1) : V{};
  V grad_scale = {}, grad_shift = {};
  for (int64_t d = 0; d < D; ++d) {
    V value[TILE], z[TILE], grad[TILE];
    UNROLL
    for (int j = 0; j < count; ++j) {
      value[j] = load<V>(x.at + d * x.d + j * x.step, lanes);
      z[j] = p.scale ? relu(value[j] * scale + shift) : value[j];
      grad[j] = p.weight ? V{} : grad_y_of[d][j];
    }
    if (p.weight) {
      for (int64_t k = 0; k < D; ++k) {
        const V weight = C::get(block, d * D + k);
        V sum = sums[d * D + k];
        UNROLL
        for (int j = 0; j < count; ++j) {
          grad[j] += weight * grad_y_of[k][j];
          sum += z[j] * grad_y_of[k][j];
        }
        sums[d * D + k] = sum;
      }
    }
    UNROLL
    for (int j = 0; j < count; ++j) {
      T* to = grad_x.at + d * grad_x.d + j * grad_x.step;
      if (p.scale) {
        grad[j] = z[j] == 0 ? V{} : grad[j];
        grad_scale += grad[j] * value[j];
        grad_shift += grad[j];
        grad[j] *= scale;
      }
      if (accumulate) grad[j] += load<V>(const_cast<const T*>(to), lanes);
      streaming ? stream(to, grad[j]) : store(to, grad[j], lanes);
    }
  }
  sums[D * D] += grad_scale;
  sums[D * D + 1] += grad_shift;
}

template <class T, bool PLANES>
__attribute__((noinline)) void partial_backward_tile(const Problem& p, Place<const T> x, Place<const T> grad_y,
                                                     Place<T> grad_x, bool accumulate,
                                                     const typename Compute<T>::Scalar* block,
                                                     typename Compute<T>::Vector* sums, int count, int lanes) {
  backward_tile<T, 0, PLANES>(p, x, grad_y, grad_x, accumulate, false, block, sums, count, lanes);
}

template <class T, int SLICES, bool PLANES>
void backward(const Problem& p, const T* x, Strides xs, const T* grad_y, Strides gs, T* grad_x, Strides os,
              bool accumulate, double* grad_coefficients, int64_t grad_n) {
  using V = typename Compute<T>::Vector;
  constexpr int L = LANES<T>;
  const Chunks<PLANES> chunks(p, 256);
  const int64_t per_block = p.slices * p.slices + 2, blocks = PLANES ? 1 : (p.channels + L - 1) / L;
  std::vector<Coefficients<T, PLANES>> coefficients;
  for (int64_t n = 0; n < (p.weight_n ? p.batch : 1); ++n) coefficients.emplace_back(p, n);
  const bool streaming = !accumulate && streamable(grad_x, os, values(p), p.lanes);
#pragma omp parallel
  {
    std::vector<V> sums(per_block * blocks);
    std::vector<double> totals(per_block * p.channels);
    for (int64_t n = 0; n < p.batch; ++n) {
      const auto& coefficient = coefficients[p.weight_n ? n : 0];
#pragma omp for schedule(static) nowait
      for (int64_t i = 0; i < chunks.count; ++i) {
        std::fill(sums.begin(), sums.end(), V{});
        for_tiles<T, PLANES>(
            p, chunks, i,
            [&](int64_t row, int64_t lane, int count, int lanes) __attribute__((always_inline)) {
              Place<const T> from{x + n * xs.n + row * xs.row + lane, xs.d, PLANES ? L : xs.row};
              Place<const T> grad{grad_y + n * gs.n + row * gs.row + lane, gs.d, PLANES ? L : gs.row};
              Place<T> to{grad_x + n * os.n + row * os.row + lane, os.d, PLANES ? L : os.row};
              const auto* block = coefficient.block(PLANES ? row : lane / L);
              V* sum = &sums[PLANES ? 0 : lane / L * per_block];
              if (count == TILE && lanes == L)
                backward_tile<T, SLICES, PLANES>(p, from, grad, to, accumulate, streaming, block, sum, TILE, L);
              else
                partial_backward_tile<T, PLANES>(p, from, grad, to, accumulate, block, sum, count, lanes);
            });
        end_of_stream();
        for (int64_t j = 0; j < per_block; ++j)
          if (PLANES) {
            for (int lane = 0; lane < L; ++lane) totals[j * p.channels + chunks.row(i)] += sums[j][lane];
          } else {
            for (int64_t c = 0; c < p.channels; ++c) totals[j * p.channels + c] += sums[c / L * per_block + j][c % L];
          }
      }
      if (grad_n || n + 1 == p.batch) {
        add_in_order(totals, grad_coefficients + n * grad_n);
        std::fill(totals.begin(), totals.end(), 0.0);
      }
    }
  }
}

// Per channel a value x0 amid the others, and the sums of x - x0 and of its square: (3, channels).
template <class T, bool PLANES>
void statistics(const Problem& p, const T* x, Strides xs, double* out) {
  using V = typename Compute<T>::Vector;
  constexpr int L = LANES<T>;
  const Chunks<PLANES> chunks(p, 256);
  const int64_t blocks = PLANES ? 1 : (p.channels + L - 1) / L;
  // Far from x0 the sums would cancel: it is the median of some values of all slices.
  const int64_t pixels = PLANES ? p.lanes : p.rows;
  std::vector<typename Compute<T>::Scalar> centre(p.channels), some;
  for (int64_t c = 0; c < p.channels; ++c) {
    some.clear();
    for (int64_t n = 0; n < std::min<int64_t>(p.batch, 4); ++n)
      for (int64_t d = 0; d < p.slices; ++d)
        for (int64_t i = 1; i < 4; ++i) {
          const int64_t pixel = pixels * i / 4;
          const T* at = x + n * xs.n + d * xs.d + (PLANES ? c * xs.row + pixel : pixel * xs.row + c);
          some.push_back(load<V>(at, 1)[0]);
        }
    std::nth_element(some.begin(), some.begin() + some.size() / 2, some.end());
    out[c] = centre[c] = some[some.size() / 2];
  }
#pragma omp parallel
  {
    std::vector<V> sums(2 * blocks);
    std::vector<double> totals(2 * p.channels);
#pragma omp for collapse(2) schedule(static) nowait
    for (int64_t n = 0; n < p.batch; ++n)
      for (int64_t i = 0; i < chunks.count; ++i) {
        std::fill(sums.begin(), sums.end(), V{});
        for_tiles<T, PLANES>(
            p, chunks, i,
            [&](int64_t row, int64_t lane, int count, int lanes) __attribute__((always_inline)) {
              const V first = PLANES ? V{} + centre[row] : load<V>(&centre[lane], lanes);
              V* sum = &sums[PLANES ? 0 : lane / L * 2];
              V all = sum[0], squares = sum[1];
              for (int64_t d = 0; d < p.slices; ++d)
                for (int j = 0; j < count; ++j) {
                  V value = load<V>(x + n * xs.n + d * xs.d + row * xs.row + lane + j * (PLANES ? L : xs.row), lanes);
                  value -= first;
                  if (lanes < L)
                    for (int k = lanes; k < L; ++k) value[k] = 0;
                  all += value;
                  squares += value * value;
                }
              sum[0] = all;
              sum[1] = squares;
            });
        for (int j = 0; j < 2; ++j)
          if (PLANES) {
            for (int lane = 0; lane < L; ++lane) totals[j * p.channels + chunks.row(i)] += sums[j][lane];
          } else {
            for (int64_t c = 0; c < p.channels; ++c) totals[j * p.channels + c] += sums[c / L * 2 + j][c % L];
          }
      }
    add_in_order(totals, out + p.channels);
  }
}

template <class F>
void with_slices(int64_t slices, F&& f) {
  if (slices == 3)
    f(std::integral_constant<int, 3>());
  else if (slices == 7)
    f(std::integral_constant<int, 7>());
  else
    f(std::integral_constant<int, 0>());
}

template <class F>
void with_types(int dtype, bool planes, int64_t slices, F&& f) {
  auto with_layout = [&](auto value) {
    with_slices(slices, [&](auto d) {
      if (planes)
        f(value, d, std::true_type());
      else
        f(value, d, std::false_type());
    });
  };
  if (dtype == 0)
    with_layout(float());
  else if (dtype == 1)
    with_layout(double());
  else
    with_layout(bfloat16());
}

}  // namespace

extern "C" {

// dtype: 0 float, 1 double, 2 bfloat16 (with coefficients in float).
void a3d_mix(int dtype, int planes, const Problem* problem, const void* x, const Strides* x_strides, void* y,
             const Strides* y_strides) {
  with_types(dtype, planes, problem->slices, [&](auto value, auto slices, auto in_planes) {
    using T = decltype(value);
    forward<T, decltype(slices)::value, decltype(in_planes)::value>(*problem, static_cast<const T*>(x), *x_strides,
                                                                    static_cast<T*>(y), *y_strides);
  });
}

// grad_coefficients: (slices * slices + 2, channels) of zeros, or one such array for each sample grad_n apart; gets the
// gradients with respect to weight, scale and shift.
void a3d_mix_backward(int dtype, int planes, const Problem* problem, const void* x, const Strides* x_strides,
                      const void* grad_y, const Strides* grad_y_strides, void* grad_x, const Strides* grad_x_strides,
                      int accumulate, double* grad_coefficients, int64_t grad_n) {
  with_types(dtype, planes, problem->slices, [&](auto value, auto slices, auto in_planes) {
    using T = decltype(value);
    backward<T, decltype(slices)::value, decltype(in_planes)::value>(
        *problem, static_cast<const T*>(x), *x_strides, static_cast<const T*>(grad_y), *grad_y_strides,
        static_cast<T*>(grad_x), *grad_x_strides, accumulate, grad_coefficients, grad_n);
  });
}

// sums: (3, channels), the last two of zeros: see statistics.
void a3d_statistics(int dtype, int planes, const Problem* problem, const void* x, const Strides* x_strides,
                    double* sums) {
  with_types(dtype, planes, 0, [&](auto value, auto, auto in_planes) {
    using T = decltype(value);
    statistics<T, decltype(in_planes)::value>(*problem, static_cast<const T*>(x), *x_strides, sums);
  });
}
}
