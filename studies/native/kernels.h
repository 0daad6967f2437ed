// What a generated function calls: products of small matrices, and the mathematics of vectors.
//
// Everything here is inlined with sizes and strides that are constants, so that the compiler unrolls a tile of a product
// until its sums stay in registers.

#include <math.h>
#include <stdint.h>
#include <string.h>

// Products multiply and add in one step. What comes after them, and after pop_options, rounds in between, as torch does:
// x x - y y is 0 where x is y.
#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")

// Of these the C library has variants that take a whole vector (libmvec).
#pragma omp declare simd notinbranch
extern float expf(float);
#pragma omp declare simd notinbranch
extern float logf(float);
#pragma omp declare simd notinbranch
extern float erff(float);
#pragma omp declare simd notinbranch
extern float tanhf(float);

#ifdef __AVX512F__
enum { WIDTH = 16, ACROSS = 4 };  // numbers in a vector; vectors side by side in a tile
#define COUNTED ((places){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
#else
enum { WIDTH = 8, ACROSS = 2 };
#define COUNTED ((places){0, 1, 2, 3, 4, 5, 6, 7})
#endif
enum { DOWN = 4 };  // rows of a tile

typedef float vector __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int places __attribute__((vector_size(4 * WIDTH)));  // which of the numbers of two vectors

#define INLINE static inline __attribute__((always_inline))

// A tile of c = a b: `down` rows, `across` vectors of columns, of which the last `kept` numbers are written.
INLINE void tile(int down, int across, int kept, int k, const float *a, long a_row, long a_column, const float *b,
                 long b_row, float *c, long c_row) {
  vector sum[DOWN][ACROSS] = {0};
  for (int i = 0; i < k; i++) {
    vector row[ACROSS];
    for (int j = 0; j < across; j++) row[j] = *(const vector *)(b + i * b_row + j * WIDTH);
    for (int r = 0; r < down; r++)
      for (int j = 0; j < across; j++) sum[r][j] += a[r * a_row + i * a_column] * row[j];
  }
  for (int r = 0; r < down; r++)
    for (int j = 0; j < across; j++)
      memcpy(c + r * c_row + j * WIDTH, &sum[r][j], sizeof(float) * (j < across - 1 ? WIDTH : kept));
}

// The same for all rows.
INLINE void column_of_tiles(int across, int kept, int m, int k, const float *a, long a_row, long a_column,
                            const float *b, long b_row, float *c, long c_row) {
  for (int r = 0; r + DOWN <= m; r += DOWN)
    tile(DOWN, across, kept, k, a + r * a_row, a_row, a_column, b, b_row, c + r * c_row, c_row);
  for (int r = m - m % DOWN; r < m; r++)
    tile(1, across, kept, k, a + r * a_row, a_row, a_column, b, b_row, c + r * c_row, c_row);
}

// Transposes a square of WIDTH vectors. With every `step` its quarters that are off the diagonal, so large, change places.
INLINE void transpose(const float *from, long from_row, float *to, long to_row) {
  vector rows[WIDTH];
#pragma GCC unroll 16
  for (int i = 0; i < WIDTH; i++) rows[i] = *(const vector *)(from + i * from_row);
#pragma GCC unroll 4
  for (int step = 1; step < WIDTH; step *= 2) {
    const places upper = COUNTED + (((COUNTED & step) != 0) & (WIDTH - step)), lower = upper + step;
#pragma GCC unroll 16
    for (int i = 0; i < WIDTH; i++)
      if (!(i & step)) {
        const vector above = rows[i], below = rows[i + step];
        rows[i] = __builtin_shuffle(above, below, upper);
        rows[i + step] = __builtin_shuffle(above, below, lower);
      }
  }
#pragma GCC unroll 16
  for (int i = 0; i < WIDTH; i++) *(vector *)(to + i * to_row) = rows[i];
}

// Puts b, of shape (k, n), where its rows lie in one piece and are filled up with zeros to whole vectors.
INLINE void pack(int k, int n, const float *b, long b_row, long b_column, float *packed, long padded) {
  const int whole = b_row == 1 && k % WIDTH == 0 ? n - n % WIDTH : 0;
  for (int j = 0; j < whole; j += WIDTH)
    for (int i = 0; i < k; i += WIDTH) transpose(b + i + j * b_column, b_column, packed + i * padded + j, padded);
  for (int i = 0; i < k; i++)
    for (int j = whole; j < padded; j++) packed[i * padded + j] = j < n ? b[i * b_row + j * b_column] : 0;
}

// c = a b for a of shape (m, k), b of shape (k, n), c of shape (m, n) whose rows lie in one piece.
//
// packed: room for k rows of n numbers, rounded up to whole vectors, where b is put if its rows do not lie like that.
INLINE void product(int m, int n, int k, const float *a, long a_row, long a_column, const float *b, long b_row,
                    long b_column, float *c, long c_row, float *packed) {
  if (b_column != 1 || n % WIDTH) {
    const int padded = (n + WIDTH - 1) / WIDTH * WIDTH;
    pack(k, n, b, b_row, b_column, packed, padded);
    b = packed, b_row = padded;
  }
  const int wide = WIDTH * ACROSS, left = n % wide, vectors = (left + WIDTH - 1) / WIDTH;
  for (int j = 0; j + wide <= n; j += wide)
    column_of_tiles(ACROSS, WIDTH, m, k, a, a_row, a_column, b + j, b_row, c + j, c_row);
  if (left)
    column_of_tiles(vectors, left - (vectors - 1) * WIDTH, m, k, a, a_row, a_column, b + n - left, b_row, c + n - left,
                    c_row);
}
