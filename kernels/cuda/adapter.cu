// The whole adapter in one cooperative launch: GRID blocks of 256 threads stay until the clip is translated.
//
// First the context: both encoders' tokens projected, split over the contracted axis; parts added, normalised and placed;
// keys and values of all layers. These three steps are separated by barriers over the grid. Then the chain of short steps
// on the queries. A block has one tile of 16 query rows and a share of every product's columns, and there is no barrier:
// a result is written over a pattern that no result has (UNWRITTEN), and whoever needs it reads until the pattern is
// gone. There are two sets of such buffers; a launch uses one and clears the other for the launch after it.
//
// A product's fragments come from row-major memory, 16 bytes a lane: the contracted axis may be permuted at will as long
// as both sides are, so that in every 32 of its places lane t of a quad holds places 8 t to 8 t + 7. Weights go to shared memory
// two steps ahead, each thread copying what it alone will read.

constexpr int THREADS = 256, WARPS = 8, HEAD = 64;
constexpr int ROW_TILES = (QUERIES + 15) / 16, ROWS = 16 * ROW_TILES, GROUPS = GRID / ROW_TILES;
constexpr int SPLITS = GROUPS / HEADS < 3 ? GROUPS / HEADS : 3;
// The steps of a layer; the first layer starts at CROSS_ATTEND. Behind the last layer come the parts of the output.
enum Kind { QKV, SELF_ATTEND, SELF_OUT, QUERY_OUT, CROSS_ATTEND, CROSS_OUT, UP, DOWN, KINDS };
constexpr int OUT_STEP = LAYERS * KINDS, LAST_STEP = OUT_STEP + OUT_PASSES;
constexpr uint32_t UNWRITTEN = 0xffffffffu;
constexpr float EPS = 1e-5f, EMPTY = -1e30f, SCORE_SCALE = 1.4426950408889634f / 8;

typedef unsigned short Element;

struct Linear {
  const Element* weight;
  const float* bias;
  const float* sums;
};

struct Parameters {
  const Element *vlm, *dino;
  const int* lengths;
  const float* table;
  Linear vlm_projection, dino_projection, keys_values;
  const float* hidden_states;
  const Element* query;
  Linear products[LAST_STEP];  // of every step that is one
  float* partial;
  float2* statistics;
  Element *context, *keys, *values, *exchange, *output;
  unsigned long long *counter, *stamps;
  int vlm_tokens, dino_tokens, vlm_split, vlm_splits, dino_split, dino_splits;
};

// Elements of a layer's exchange buffers.
constexpr int QUERY_KEYS = 0, VALUES = QUERY_KEYS + 2 * ROWS * HIDDEN, MIXED = VALUES + ROWS * HIDDEN;
constexpr int AFTER_SELF = MIXED + ROWS * HIDDEN, QUERY = AFTER_SELF + ROWS * HIDDEN, PARTS = QUERY + ROWS * HIDDEN;
constexpr int AFTER_CROSS = PARTS + SPLITS * ROWS * HIDDEN, RAISED = AFTER_CROSS + ROWS * HIDDEN;
constexpr int AFTER_FF = RAISED + ROWS * FF, LOGS = AFTER_FF + ROWS * HIDDEN;
constexpr int LAYER_EXCHANGE = LOGS + 2 * SPLITS * ROWS * HEADS, EXCHANGE = LAYERS * LAYER_EXCHANGE;

__host__ __device__ constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }

// How the warps of a block share a product [16, K] x [K, columns]: SLICES of the contracted axis, and among as many warps as are
// left the columns, in units of 8.
template <int K_, int SLICES_, int BLOCK_UNITS_>
struct Shape {
  static constexpr int K = K_, SLICES = SLICES_, SHARES = WARPS / SLICES, BLOCK_UNITS = BLOCK_UNITS_;
  static constexpr int WARP_UNITS = divide_up(BLOCK_UNITS, SHARES), STEPS = divide_up(K / 32, SLICES);
  static constexpr int BYTES = WARP_UNITS * STEPS * THREADS * 16, STRIDE = SLICES == 8 ? 40 : 88;
};

__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
__host__ __device__ constexpr int block_units(int width) { return divide_up(width / 8, GROUPS); }

// Products that end in HIDDEN columns, and the wide ones, all of which normalise their input first.
typedef Shape<HIDDEN, 8, block_units(HIDDEN)> Square;
typedef Shape<FF, 8, block_units(HIDDEN)> Down;
typedef Shape<HIDDEN, 4, larger(larger(block_units(3 * HIDDEN), block_units(FF)), block_units(OUT / OUT_PASSES))> Wide;

// Shared memory: the pipeline of the context's products, later two regions of weights; sums; what is reduced over warps.
constexpr int STAGES = 4, STAGE_BYTES = (128 + COLUMNS) * 128;
constexpr int REGION = larger(larger(Square::BYTES, Down::BYTES), Wide::BYTES);
constexpr int SUMS_AT = larger(STAGES * STAGE_BYTES, 2 * REGION), SUMS_BYTES = 4 * 16 * Wide::STRIDE * 4;
constexpr int STATISTICS_AT = SUMS_AT + 2 * SUMS_BYTES, SHARED_BYTES = STATISTICS_AT + 2 * WARPS * 16 * 8;
static_assert(SHARED_BYTES == EXPECTED_SHARED_BYTES && EXCHANGE == EXPECTED_EXCHANGE, "kernels/persistent.py");
static_assert(2 * Square::STRIDE <= Wide::STRIDE && Square::BLOCK_UNITS <= 4 && Wide::BLOCK_UNITS <= 10, "sums of a product");

struct Place {
  int thread, warp, group, quad;  // group: lane / 4, a row or column of a fragment; quad: lane % 4, its eighth of 32 places
  int rows, share;                // the block's first query row, and which of GROUPS it is
};

// UNWRITTEN is the largest of numbers, so that the largest word says whether any is unwritten.
DEVICE uint32_t largest_word(uint4 v) { return max(max(v.x, v.y), max(v.z, v.w)); }

DEVICE float quad_sum(float x) {
  x += warp_exchange(x, 1);
  return x + warp_exchange(x, 2);
}

DEVICE float warp_sum(float x) {
  for (int mask = 1; mask < 32; mask *= 2) x += warp_exchange(x, mask);
  return x;
}

DEVICE float inverse_deviation(float2 statistics, float mean, int count) {
  float variance = statistics.y / count - mean * mean;
  // Not fmaxf, which would turn NaN into a number.
  return rsqrtf((variance < 0 ? 0 : variance) + EPS);
}

// a: rows r and r + 8, b: column; 32 places of the contracted axis.
DEVICE void multiply_32(float (&sums)[4], const uint4 (&a)[2], uint4 b) {
  multiply_add(sums, a[0].x, a[1].x, a[0].y, a[1].y, b.x, b.y);
  multiply_add(sums, a[0].z, a[1].z, a[0].w, a[1].w, b.z, b.w);
}

// A barrier over the grid, with what each block can do between its arrival and everybody's.
template <typename Meanwhile>
DEVICE void wait_for_all(unsigned long long* counter, unsigned long long target, Meanwhile meanwhile) {
  block_sync();
  if (thread_index() == 0) arrive(counter);
  meanwhile();
  if (thread_index() == 0)
    while (arrived(counter) < target) relax();
  block_sync();
}

// ---- The context

DEVICE void* staged(unsigned char* stage, int row, int chunk) {
  return stage + row * 128 + ((chunk ^ (row & 7)) << 4);
}

// A tile [128, COLUMNS] of a product: rows of `a` beyond `a_rows` count as zeros, `b` has COLUMNS; both are row-major, `dim` a row,
// and the contracted axis runs from `first` to `last`. It goes to `parts` as floats, with the sums and
// squares of a's rows to `statistics` unless null; or with a bias to `keys` or transposed to `values`.
struct Tile {
  const Element *a, *b;
  int a_rows, dim, first, last;
  float* parts;
  float2* statistics;
  Element *keys, *values;
  const float* bias;
  int rows, padded, padded_rows;  // how many rows exist, the width of `values`, and how many rows keys and values have from here on
};

// Write a thread's part of a tile: 2 rows, 8 apart, of every 8 columns.
DEVICE void keep_parts(const Tile& tile, int row, int column, const float (&sums)[COLUMNS / 8][4]) {
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int i = 0; i < COLUMNS / 8; i++)
      if (row + half * 8 < tile.rows)
        *(float2*)(tile.parts + (row + half * 8) * HIDDEN + column + i * 8) = make_float2(sums[i][half * 2], sums[i][half * 2 + 1]);
}

// As elements, laid out in shared memory first, so that memory is written 16 bytes at a time.
DEVICE void keep_elements(const Place& at, unsigned char* shared, const Tile& tile, int row, int column, const float (&sums)[COLUMNS / 8][4]) {
  // Odd multiples of 16 bytes spread the lines over the banks.
  constexpr int KEY_LINE = COLUMNS / 8 % 2 ? COLUMNS : COLUMNS + 8, VALUE_LINE = 128 + 8;
  Element* lines = (Element*)shared;
#pragma unroll
  for (int i = 0; i < COLUMNS / 8; i++) {
    float2 bias = *(const float2*)(tile.bias + column + i * 8);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t pair = pack(sums[i][half * 2] + bias.x, sums[i][half * 2 + 1] + bias.y);
      if (tile.keys) {
        *(uint32_t*)(lines + (row + half * 8) * KEY_LINE + column + i * 8) = pair;
      } else {
        Element* to = lines + (column + i * 8) * VALUE_LINE + row + half * 8;
        to[0] = (Element)(pair & 0xffff), to[VALUE_LINE] = (Element)(pair >> 16);
      }
    }
  }
  block_sync();
  int chunks = tile.keys ? COLUMNS / 8 : 128 / 8, line = tile.keys ? KEY_LINE : VALUE_LINE;
  for (int i = at.thread; i < 128 * COLUMNS / 8; i += THREADS) {
    int down = i / chunks, across = i % chunks * 8;
    Element* to = tile.keys ? tile.keys + down * HIDDEN + across : tile.values + down * tile.padded + across;
    // The rows of a last tile that do not exist are zeros up to what the buffers hold.
    if ((tile.keys ? down : across) < tile.padded_rows) *(uint4*)to = *(const uint4*)(lines + down * line + across);
  }
  block_sync();
}

DEVICE void load_stage(const Place& at, unsigned char* shared, const Tile& tile, int step) {
  unsigned char* stage = shared + step % STAGES * STAGE_BYTES;
  int start = tile.first + step * 64;
  if (start < tile.last) {
    int chunk = at.thread & 7, place = start + chunk * 8;
#pragma unroll
    for (int i = 0; i < divide_up((128 + COLUMNS) * 8, THREADS); i++) {
      int row = (at.thread >> 3) + i * (THREADS / 8);
      if (row >= 128 + COLUMNS) break;
      bool valid = place < tile.last && (row >= 128 || row < tile.a_rows);
      const Element* from = row < 128 ? tile.a + (size_t)row * tile.dim : tile.b + (size_t)(row - 128) * tile.dim;
      copy_async(staged(stage, row, chunk), valid ? from + place : tile.b, valid);
    }
  }
  copy_commit();
}

template <typename Meanwhile>
DEVICE void multiply_tile(const Place& at, unsigned char* shared, const Tile& tile, Meanwhile meanwhile) {
  float sums[COLUMNS / 8][4] = {}, total = 0, squares = 0;
#pragma unroll 1
  for (int step = 0; step < STAGES - 1; step++) load_stage(at, shared, tile, step);
  meanwhile();
#pragma unroll 1
  for (int step = 0; tile.first + step * 64 < tile.last; step++) {
    copy_wait<STAGES - 2>();
    publish_stage();
    block_sync();
    load_stage(at, shared, tile, step + STAGES - 1);
    unsigned char* stage = shared + step % STAGES * STAGE_BYTES;
    multiply_stage(sums, stage + at.warp / 4 * 64 * 128, stage + 128 * 128);
    // Meanwhile two threads take the statistics of a row.
    if (tile.statistics)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        uint4 chunk = *(const uint4*)staged(stage, at.thread >> 1, (at.thread & 1) * 4 + i);
        const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
          float2 pair = unpack(words[j]);
          total += pair.x + pair.y;
          squares += pair.x * pair.x + pair.y * pair.y;
        }
      }
    multiplied(sums);
  }
  copy_wait<0>();
  block_sync();
  int row = at.warp * 16 + at.group, column = at.quad * 2;
  if (tile.parts) keep_parts(tile, row, column, sums);
  else keep_elements(at, shared, tile, row, column, sums);
  if (tile.statistics) {
    total += warp_exchange(total, 1), squares += warp_exchange(squares, 1);
    if ((at.thread & 1) == 0 && at.thread >> 1 < tile.rows) tile.statistics[at.thread >> 1] = make_float2(total, squares);
  }
}

constexpr int ACROSS = HIDDEN / COLUMNS;

// Parts of x W of both encoders' raw tokens: partial [splits, tokens, HIDDEN], DINO's tokens first.
DEVICE int projection_tiles(const Parameters& p) {
  return ACROSS * (divide_up(p.vlm_tokens, 128) * p.vlm_splits + divide_up(p.dino_tokens, 128) * p.dino_splits);
}

DEVICE Tile projection_tile(const Parameters& p, int item) {
  int vlm_tiles = ACROSS * divide_up(p.vlm_tokens, 128) * p.vlm_splits;
  bool vlm = item < vlm_tiles;
  int rest = vlm ? item : item - vlm_tiles, splits = vlm ? p.vlm_splits : p.dino_splits;
  int dim = vlm ? VLM_DIM : DINO_DIM, size = vlm ? p.vlm_split : p.dino_split, tokens = vlm ? p.vlm_tokens : p.dino_tokens;
  int split = rest % splits, across = rest / splits % ACROSS, row = rest / splits / ACROSS * 128;
  const Element* weight = vlm ? p.vlm_projection.weight : p.dino_projection.weight;
  size_t target = (size_t)split * (p.vlm_tokens + p.dino_tokens) + (vlm ? p.dino_tokens : 0) + row;
  return {(vlm ? p.vlm : p.dino) + (size_t)row * dim, weight + (size_t)across * COLUMNS * dim,
          (vlm ? min(p.lengths[0], tokens) : tokens) - row, dim, split * size, min(dim, (split + 1) * size),
          p.partial + target * HIDDEN + across * COLUMNS, across ? nullptr : p.statistics + target, nullptr, nullptr, nullptr,
          tokens - row, 0, 0};
}

// keys [LAYERS, padded, HIDDEN] and values [LAYERS, HIDDEN, padded] of the context.
DEVICE int context_tiles(const Parameters& p) { return 2 * LAYERS * ACROSS * divide_up(p.vlm_tokens + p.dino_tokens, 128); }

DEVICE Tile context_tile(const Parameters& p, int item) {
  int total = p.vlm_tokens + p.dino_tokens, padded = divide_up(total, 32) * 32, down = divide_up(total, 128);
  int row = item % down * 128, column = item / down * COLUMNS, part = column / HIDDEN, inside = column % HIDDEN;
  Element* target = (part & 1 ? p.values : p.keys) + (size_t)(part >> 1) * padded * HIDDEN;
  return {p.context + (size_t)row * HIDDEN, p.keys_values.weight + (size_t)column * HIDDEN, total - row, HIDDEN, 0, HIDDEN,
          nullptr, nullptr, part & 1 ? nullptr : target + (size_t)row * HIDDEN + inside,
          part & 1 ? target + (size_t)inside * padded + row : nullptr, p.keys_values.bias + column, total - row, padded, padded - row};
}

// context [tokens, HIDDEN]: parts added, normalised, biases and positions added; a warp a token. What does not depend on the parts is
// asked for before `wait`.
template <typename Wait>
DEVICE void finish(const Parameters& p, const Place& at, int token, Wait wait) {
  constexpr int PAIRS = HIDDEN / 64;
  int total = p.vlm_tokens + p.dino_tokens, lane = at.thread & 31;
  bool exists = token < total, dino = token < p.dino_tokens;
  int splits = dino ? p.dino_splits : p.vlm_splits, dim = dino ? DINO_DIM : VLM_DIM;
  token = min(token, total - 1);
  const float2* column_sums = (const float2*)(dino ? p.dino_projection : p.vlm_projection).sums + lane;
  const float2* table = (const float2*)(p.table + (size_t)token * HIDDEN) + lane;
  float2 value[PAIRS] = {}, sum[PAIRS], place[PAIRS], statistics = {0, 0};
#pragma unroll
  for (int i = 0; i < PAIRS; i++) sum[i] = column_sums[i * 32], place[i] = table[i * 32];
  wait();
#pragma unroll 8
  for (int split = 0; split < splits; split++) {
    size_t row = (size_t)split * total + token;
    const float2* part = (const float2*)(p.partial + row * HIDDEN) + lane;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      float2 more = __ldcg(part + i * 32);
      value[i].x += more.x;
      value[i].y += more.y;
    }
    float2 more = __ldcg(p.statistics + row);
    statistics.x += more.x;
    statistics.y += more.y;
  }
  float mean = statistics.x / dim, scale = inverse_deviation(statistics, mean, dim);
#pragma unroll
  for (int i = 0; i < PAIRS; i++)
    if (exists)
      *(uint32_t*)(p.context + (size_t)token * HIDDEN + (i * 32 + lane) * 2) =
          pack(scale * (value[i].x - mean * sum[i].x) + place[i].x, scale * (value[i].y - mean * sum[i].y) + place[i].y);
}

// ---- The queries

DEVICE int kind_of(int step) { return step < OUT_STEP ? step % KINDS : KINDS; }
DEVICE bool is_wide(int kind) { return kind == QKV || kind == UP || kind == KINDS; }
DEVICE int width_of(int kind) { return kind == QKV ? 3 * HIDDEN : kind == UP ? FF : kind == KINDS ? OUT / OUT_PASSES : HIDDEN; }

DEVICE int next_product(int step) {
  int kind = kind_of(++step);
  return kind == SELF_ATTEND || kind == CROSS_ATTEND ? step + 1 : step;
}

// The block's units of 8 columns.
struct Units {
  int first, last;
  DEVICE Units(const Place& at, int width) : first(at.share * (width / 8) / GROUPS), last((at.share + 1) * (width / 8) / GROUPS) {}
};

// Ask for what this thread will multiply with of weight [width, K].
template <typename S>
DEVICE void fetch_weights(const Place& at, const Element* weight, int width, unsigned char* region) {
  Units units(at, width);
  int slice = at.warp % S::SLICES, unit = units.first + at.warp / S::SLICES;
  const Element* from = weight + (unit * 8 + at.group) * S::K + slice * 32 + at.quad * 8;
#pragma unroll
  for (int i = 0; i < S::WARP_UNITS; i++)
#pragma unroll
    for (int j = 0; j < S::STEPS; j++)
      copy_async(region + ((i * S::STEPS + j) * THREADS + at.thread) * 16, from + i * S::SHARES * 8 * S::K + j * S::SLICES * 32,
                 unit + i * S::SHARES < units.last && slice + j * S::SLICES < S::K / 32);
}

// Wait for this warp's slices of the block's 16 rows of x [ROWS, K].
template <typename S>
DEVICE void take(const Place& at, const Element* x, uint4 (&a)[S::STEPS][2]) {
  int slice = at.warp % S::SLICES;
  const Element* from = x + (at.rows + at.group) * S::K + slice * 32 + at.quad * 8;
  while (true) {
#pragma unroll
    for (int j = 0; j < S::STEPS; j++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const Element* place = from + half * 8 * S::K + j * S::SLICES * 32;
        // Only the last step can lie outside for some of the slices.
        a[j][half] = (j + 1) * S::SLICES <= S::K / 32 ? load_fresh(place) : load_fresh_if(slice + j * S::SLICES < S::K / 32, place);
      }
    uint32_t largest = 0;
#pragma unroll
    for (int j = 0; j < S::STEPS; j++) largest = max(largest, max(largest_word(a[j][0]), largest_word(a[j][1])));
    if (warp_all(largest != UNWRITTEN)) return;
    relax();
  }
}

// As `take`, of an attention whose parts over the context [SPLITS, ROWS, HIDDEN] come with logs of their sums.
DEVICE void take_merged(const Place& at, const Element* parts, const uint32_t* logs, uint4 (&a)[Square::STEPS][2]) {
  uint4 part[SPLITS][Square::STEPS][2];
  uint32_t log[SPLITS][Square::STEPS][2];
  int slice = at.warp % Square::SLICES;
  while (true) {
    uint32_t largest = 0;
#pragma unroll
    for (int s = 0; s < SPLITS; s++)
#pragma unroll
      for (int j = 0; j < Square::STEPS; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          int block = slice + j * Square::SLICES, row = s * ROWS + at.rows + at.group + half * 8;
          const Element* place = parts + row * HIDDEN + block * 32 + at.quad * 8;
          bool always = (j + 1) * Square::SLICES <= HIDDEN / 32, valid = block < HIDDEN / 32;
          part[s][j][half] = always ? load_fresh(place) : load_fresh_if(valid, place);
          log[s][j][half] = load_fresh_word(logs + row * HEADS + (valid ? block / 2 : 0));
        }
#pragma unroll
    for (int s = 0; s < SPLITS; s++)
#pragma unroll
      for (int j = 0; j < Square::STEPS; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) largest = max(largest, max(log[s][j][half], largest_word(part[s][j][half])));
    if (warp_all(largest != UNWRITTEN)) break;
    relax();
  }
#pragma unroll
  for (int j = 0; j < Square::STEPS; j++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float largest = EMPTY, total = 0, share[SPLITS];
#pragma unroll
      for (int s = 0; s < SPLITS; s++) largest = fmaxf(largest, __uint_as_float(log[s][j][half]));
#pragma unroll
      for (int s = 0; s < SPLITS; s++) total += share[s] = power_of_two(__uint_as_float(log[s][j][half]) - largest);
      float scale = reciprocal(total);
      uint32_t merged[4];
#pragma unroll
      for (int word = 0; word < 4; word++) {
        float x = 0, y = 0;
#pragma unroll
        for (int s = 0; s < SPLITS; s++) {
          const uint4& v = part[s][j][half];
          const uint32_t words[4] = {v.x, v.y, v.z, v.w};
          float2 pair = unpack(words[word]);
          x += share[s] * pair.x;
          y += share[s] * pair.y;
        }
        merged[word] = pack(x * scale, y * scale);
      }
      a[j][half] = make_uint4(merged[0], merged[1], merged[2], merged[3]);
    }
}

// Leave each slice's sums, and the rows' statistics if they are wanted, where all threads find them; see `finish_rows`.
template <typename S>
DEVICE void multiply_rows(const Place& at, const uint4 (&a)[S::STEPS][2], const Units& units, bool norm, const unsigned char* region,
                          float* sums, float2* statistics) {
  int slice = at.warp % S::SLICES, share = at.warp / S::SLICES;
  float result[S::WARP_UNITS][4] = {};
#pragma unroll
  for (int j = 0; j < S::STEPS; j++)
#pragma unroll
    for (int i = 0; i < S::WARP_UNITS; i++)
      multiply_32(result[i], a[j], *(const uint4*)(region + ((i * S::STEPS + j) * THREADS + at.thread) * 16));
#pragma unroll
  for (int i = 0; i < S::WARP_UNITS; i++)
    if (units.first + share + i * S::SHARES < units.last)
#pragma unroll
      for (int half = 0; half < 2; half++)
        *(float2*)(sums + (slice * 16 + at.group + half * 8) * S::STRIDE + (share + i * S::SHARES) * 8 + at.quad * 2) =
            make_float2(result[i][half * 2], result[i][half * 2 + 1]);
  if (norm)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float sum = 0, squares = 0;
#pragma unroll
      for (int k = 0; k < divide_up(S::STEPS, S::SHARES); k++) {
        // Warps that share a slice share its steps, too.
        uint4 v = a[k * S::SHARES][half];
        if (S::SHARES == 2 && share) v = k * 2 + 1 < S::STEPS ? a[min(k * 2 + 1, S::STEPS - 1)][half] : make_uint4(0, 0, 0, 0);
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
          float2 pair = unpack(words[i]);
          sum += pair.x + pair.y;
          squares += pair.x * pair.x + pair.y * pair.y;
        }
      }
      sum = quad_sum(sum), squares = quad_sum(squares);
      if (at.quad == 0) statistics[at.warp * 16 + at.group + half * 8] = make_float2(sum, squares);
    }
  block_sync();
}

// The error function within 1.5e-7: Abramowitz and Stegun, 7.1.26.
DEVICE float gelu(float x) {
  float z = fabsf(x) * 0.7071067811865476f, t = reciprocal(1 + 0.3275911f * z);
  float tail = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  float erf = 1 - tail * power_of_two(-1.4426950408889634f * z * z);
  return 0.5f * x * (1 + (x < 0 ? -erf : erf));
}

// Sixteen threads finish a row, a pair of columns at a time; what a thread adds to its columns is asked for ahead.
template <typename S>
struct Trim {
  static constexpr int PAIRS = divide_up(S::BLOCK_UNITS * 4, 16);
  float2 bias[PAIRS], sums[PAIRS];

  DEVICE Trim(const Place& at, const Linear& linear, const Units& units, bool norm) {
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      int column = min(units.first * 8 + ((at.thread & 15) + i * 16) * 2, units.last * 8 - 2);
      bias[i] = *(const float2*)(linear.bias + column);
      sums[i] = *(const float2*)((norm ? linear.sums : linear.bias) + column);
    }
  }

  // store(row, column, x, y, pair's number, whether it exists).
  template <typename Store>
  DEVICE void finish_rows(const Place& at, const Units& units, bool norm, const float* slices, const float2* statistics, Store store) const {
    int row = at.thread >> 4;
    float mean = 0, scale = 1;
    if (norm) {
      float2 sum = {0, 0};
#pragma unroll
      for (int warp = 0; warp < WARPS; warp++) {
        float2 part = statistics[warp * 16 + row];
        sum.x += part.x;
        sum.y += part.y;
      }
      mean = sum.x / S::K;
      scale = inverse_deviation(sum, mean, S::K);
    }
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      int inside = ((at.thread & 15) + i * 16) * 2;
      float x = 0, y = 0;
#pragma unroll
      for (int slice = 0; slice < S::SLICES; slice++) {
        float2 part = *(const float2*)(slices + (slice * 16 + row) * S::STRIDE + inside);
        x += part.x;
        y += part.y;
      }
      x = scale * (x - mean * sums[i].x) + bias[i].x;
      y = scale * (y - mean * sums[i].y) + bias[i].y;
      store(at.rows + row, units.first * 8 + inside, x, y, i, inside < (units.last - units.first) * 8);
    }
  }
};

// Attention of the block's rows in one head over blocks of 32 keys, a warp a block at a time. Keys [*, HEAD] and values [HEAD, *]
// with their strides, `limit` of them; `count` keys take part. If `growing` they are still being written, and no warp has more than one
// block. Writes [ROWS, HIDDEN] and, unless null, logs [ROWS, HEADS].
DEVICE void attend(const Place& at, unsigned char* shared, const Element* query, int query_stride, const Element* keys, int key_stride,
                   const Element* values, int value_stride, int first, int last, int count, int limit, bool growing, Element* output, float* logs) {
  float largest[2] = {EMPTY, EMPTY}, total[2] = {0, 0}, mixed[8][4] = {};
  uint4 q[2][2], k[4][2], v[8];
  bool first_time = true;
  for (int block = first + at.warp; block < last; block += WARPS) {
    int base = block * 32;
    auto load_keys_values = [&] {
#pragma unroll
      for (int tile = 0; tile < 4; tile++) {
        int key = base + (at.group >> 1) * 8 + tile * 2 + (at.group & 1);
#pragma unroll
        for (int half = 0; half < 2; half++) k[tile][half] = load_fresh_if(key < limit, keys + key * key_stride + half * 32 + at.quad * 8);
      }
#pragma unroll
      for (int tile = 0; tile < 8; tile++)
        v[tile] = load_fresh_if(base + at.quad * 8 < limit, values + (tile * 8 + at.group) * value_stride + base + at.quad * 8);
    };
    load_keys_values();
    while (first_time) {
#pragma unroll
      for (int i = 0; i < 4; i++)
        q[i >> 1][i & 1] = load_fresh(query + (at.rows + at.group + (i & 1) * 8) * query_stride + (i >> 1) * 32 + at.quad * 8);
      uint32_t largest = max(max(largest_word(q[0][0]), largest_word(q[0][1])), max(largest_word(q[1][0]), largest_word(q[1][1])));
      if (growing)
#pragma unroll
        for (int tile = 0; tile < 8; tile++) largest = max(largest, max(largest_word(v[tile]), largest_word(k[tile >> 1][tile & 1])));
      first_time = !warp_all(largest != UNWRITTEN);
      if (first_time) relax();
      if (first_time && growing) load_keys_values();
    }
    float scores[4][4] = {}, higher[2] = {largest[0], largest[1]};
#pragma unroll
    for (int tile = 0; tile < 4; tile++) {
      multiply_32(scores[tile], q[0], k[tile][0]);
      multiply_32(scores[tile], q[1], k[tile][1]);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        bool valid = base + at.quad * 8 + tile * 2 + (i & 1) < count;
        scores[tile][i] = valid ? scores[tile][i] * SCORE_SCALE : EMPTY;
        higher[i >> 1] = fmaxf(higher[i >> 1], scores[tile][i]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      higher[half] = fmaxf(higher[half], warp_exchange(higher[half], 1));
      higher[half] = fmaxf(higher[half], warp_exchange(higher[half], 2));
      float shrink = power_of_two(largest[half] - higher[half]);
      largest[half] = higher[half];
      total[half] *= shrink;
#pragma unroll
      for (int tile = 0; tile < 8; tile++) mixed[tile][half * 2] *= shrink, mixed[tile][half * 2 + 1] *= shrink;
    }
    uint32_t weights[4][2];
#pragma unroll
    for (int tile = 0; tile < 4; tile++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        bool valid = base + at.quad * 8 + tile * 2 + (i & 1) < count;
        scores[tile][i] = valid ? power_of_two(scores[tile][i] - largest[i >> 1]) : 0;
        total[i >> 1] += scores[tile][i];
      }
      weights[tile][0] = pack(scores[tile][0], scores[tile][1]);
      weights[tile][1] = pack(scores[tile][2], scores[tile][3]);
    }
#pragma unroll
    for (int tile = 0; tile < 8; tile++) {
      multiply_add(mixed[tile], weights[0][0], weights[0][1], weights[1][0], weights[1][1], v[tile].x, v[tile].y);
      multiply_add(mixed[tile], weights[2][0], weights[2][1], weights[3][0], weights[3][1], v[tile].z, v[tile].w);
    }
  }
  // Every warp's part: largest score, sum and mixture, where the product before this may still be read.
  block_sync();
  constexpr int STRIDE = 72;
  float2* heads = (float2*)(shared + STATISTICS_AT);
  float* mixtures = (float*)(shared + SUMS_AT);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int row = at.warp * 16 + at.group + half * 8;
    total[half] = quad_sum(total[half]);
    if (at.quad == 0) heads[row] = make_float2(largest[half], total[half]);
#pragma unroll
    for (int tile = 0; tile < 8; tile++)
      *(float2*)(mixtures + row * STRIDE + tile * 8 + at.quad * 2) = make_float2(mixed[tile][half * 2], mixed[tile][half * 2 + 1]);
  }
  block_sync();
  int row = at.thread >> 4;
  float peak = EMPTY, sum = 0, share[WARPS];
#pragma unroll
  for (int warp = 0; warp < WARPS; warp++) peak = fmaxf(peak, heads[warp * 16 + row].x);
#pragma unroll
  for (int warp = 0; warp < WARPS; warp++) {
    float2 part = heads[warp * 16 + row];
    share[warp] = power_of_two(part.x - peak);
    sum += share[warp] * part.y;
  }
  float scale = sum == 0 ? 0 : reciprocal(sum);
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int column = ((at.thread & 15) + i * 16) * 2;
    float x = 0, y = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
      float2 part = *(const float2*)(mixtures + (warp * 16 + row) * STRIDE + column);
      x += share[warp] * part.x;
      y += share[warp] * part.y;
    }
    publish(output + (size_t)(at.rows + row) * HIDDEN + column, pack(x * scale, y * scale));
  }
  if (logs && (at.thread & 15) == 0) {
    float log = sum == 0 ? EMPTY : peak + logarithm_of_two(sum);
    publish(logs + (at.rows + row) * HEADS, log != log ? 0x7fffffffu : __float_as_uint(log));
  }
  // The next step writes where this one still reads.
  block_sync();
}

constexpr int RESIDUAL_PAIRS = divide_up(Square::BLOCK_UNITS * 4, 16);

struct Chain {
  const Parameters& p;
  Place at;
  unsigned char* shared;
  Element* exchange;
  float residual[RESIDUAL_PAIRS][2];
  int turn;  // of products; its parity says which region and which sums

  DEVICE unsigned char* region() const { return shared + (turn & 1) * REGION; }
  DEVICE float* sums() const { return (float*)(shared + SUMS_AT + (turn & 1) * SUMS_BYTES); }
  DEVICE float2* statistics() const { return (float2*)(shared + STATISTICS_AT) + (turn & 1) * WARPS * 16; }

  DEVICE void fetch(int step) {
    if (step < LAST_STEP) {
      int kind = kind_of(step);
      const Element* weight = p.products[step].weight;
      if (is_wide(kind)) fetch_weights<Wide>(at, weight, width_of(kind), region());
      else if (kind == DOWN) fetch_weights<Down>(at, weight, HIDDEN, region());
      else fetch_weights<Square>(at, weight, HIDDEN, region());
    }
    copy_commit();
  }

  DEVICE void load_residual() {
    Units units(at, HIDDEN);
    int row = at.rows + (at.thread >> 4);
#pragma unroll
    for (int i = 0; i < RESIDUAL_PAIRS; i++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        int column = units.first * 8 + ((at.thread & 15) + i * 16) * 2 + j;
        residual[i][j] = row < QUERIES && column < units.last * 8 ? p.hidden_states[row * HIDDEN + column] : 0;
      }
  }

  // output [ROWS, HIDDEN] = x linear, with the residual unless the input is normalised.
  template <typename S, typename Take>
  DEVICE void narrow(bool norm, Element* output, int step, Take take_input) {
    Units units(at, HIDDEN);
    Trim<S> trim(at, p.products[step], units, norm);
    uint4 a[S::STEPS][2];
    take_input(a);
    stamp(p.stamps, 6 + 2 * step);
    copy_wait<1>();
    multiply_rows<S>(at, a, units, norm, region(), sums(), statistics());
    trim.finish_rows(at, units, norm, sums(), statistics(), [&](int row, int column, float x, float y, int pair, bool exists) {
      if (!norm) x = residual[pair][0] += x, y = residual[pair][1] += y;
      if (exists) publish(output + row * HIDDEN + column, pack(x, y));
    });
  }

  // The self-attention's queries and keys [ROWS, 2 HIDDEN] and its values [HIDDEN, ROWS]; the raised [ROWS, FF]; or the output, whose
  // parts have one input.
  DEVICE void wide(int kind, const Element* x, uint4 (&a)[Wide::STEPS][2], Element* output, int stride, int step) {
    Units units(at, width_of(kind));
    Trim<Wide> trim(at, p.products[step], units, true);
    if (step <= OUT_STEP) take<Wide>(at, x, a);
    stamp(p.stamps, 6 + 2 * step);
    copy_wait<1>();
    multiply_rows<Wide>(at, a, units, true, region(), sums(), statistics());
    trim.finish_rows(at, units, true, sums(), statistics(), [&](int row, int column, float x, float y, int, bool exists) {
      // Two rows of a column lie side by side among the values; the next row's thread is 16 lanes away.
      bool odd = row & 1;
      float other = kind == QKV ? warp_exchange(odd ? x : y, 16) : 0;
      if (kind == UP) x = gelu(x), y = gelu(y);
      Element* to = output + row * stride + column;
      uint32_t pair = pack(x, y);
      if (kind == QKV && column >= 2 * HIDDEN) {
        to = output + VALUES - QUERY_KEYS + (column - 2 * HIDDEN + odd) * ROWS + row - odd;
        pair = odd ? pack(other, y) : pack(x, other);
      }
      if (exists && (kind != KINDS || row < QUERIES)) publish(to, pair);
    });
  }

  DEVICE void attend_in(int kind, int layer) {
    Element* own = exchange + layer * LAYER_EXCHANGE;
    int head = at.share % HEADS, split = at.share / HEADS;
    if (split >= (kind == SELF_ATTEND ? 1 : SPLITS)) return;
    if (kind == SELF_ATTEND) {
      attend(at, shared, own + QUERY_KEYS + head * HEAD, 2 * HIDDEN, own + QUERY_KEYS + HIDDEN + head * HEAD, 2 * HIDDEN,
             own + VALUES + head * HEAD * ROWS, ROWS, 0, divide_up(QUERIES, 32), QUERIES, ROWS, true, own + MIXED + head * HEAD, nullptr);
      return;
    }
    int total = p.vlm_tokens + p.dino_tokens, padded = divide_up(total, 32) * 32, blocks = padded / 32, each = divide_up(blocks, SPLITS);
    size_t start = (size_t)layer * padded * HIDDEN;
    attend(at, shared, (layer ? own + QUERY : p.query) + head * HEAD, HIDDEN, p.keys + start + head * HEAD, HIDDEN,
           p.values + start + (size_t)head * HEAD * padded, padded, split * each, min(blocks, (split + 1) * each),
           min(p.dino_tokens + p.lengths[0], total), padded, false, own + PARTS + split * ROWS * HIDDEN + head * HEAD,
           (float*)(own + LOGS) + split * ROWS * HEADS + head);
  }

  DEVICE void run() {
    uint4 hidden[Wide::STEPS][2];
#pragma unroll 1
    for (int step = CROSS_ATTEND; step < LAST_STEP; step++) {
      int layer = step / KINDS, kind = kind_of(step);
      Element *own = exchange + layer * LAYER_EXCHANGE, *before = own - LAYER_EXCHANGE;
      if (kind == SELF_ATTEND || kind == CROSS_ATTEND) {
        attend_in(kind, layer);
        stamp(p.stamps, 7 + 2 * step);
        continue;
      }
      if (is_wide(kind)) {
        Element* output = kind == QKV ? own + QUERY_KEYS : kind == UP ? own + RAISED : p.output + (step - OUT_STEP) * width_of(KINDS);
        wide(kind, kind == UP ? own + AFTER_CROSS : before + AFTER_FF, hidden, output, kind == QKV ? 2 * HIDDEN : kind == UP ? FF : OUT,
             step);
      } else if (kind == DOWN) {
        narrow<Down>(false, own + AFTER_FF, step, [&](uint4 (&a)[Down::STEPS][2]) { take<Down>(at, own + RAISED, a); });
      } else {
        int target = kind == SELF_OUT ? AFTER_SELF : kind == QUERY_OUT ? QUERY : AFTER_CROSS;
        narrow<Square>(kind == QUERY_OUT, own + target, step, [&](uint4 (&a)[Square::STEPS][2]) {
          if (kind == CROSS_OUT) take_merged(at, own + PARTS, (const uint32_t*)(own + LOGS), a);
          else take<Square>(at, own + (kind == QUERY_OUT ? AFTER_SELF : MIXED), a);
        });
      }
      fetch(next_product(next_product(step)));
      turn++;
      stamp(p.stamps, 7 + 2 * step);
    }
  }
};

// The weights of the chain come from memory while the context is made.
DEVICE void prefetch_weights(const Parameters& p) {
#pragma unroll 1
  for (int step = CROSS_OUT; step < LAST_STEP; step = next_product(step)) {
    int kind = kind_of(step), lines = width_of(kind) * (kind == DOWN ? FF : HIDDEN) / 64;
    for (int line = block_index() * THREADS + thread_index(); line < lines; line += GRID * THREADS)
      prefetch(p.products[step].weight + (size_t)line * 64);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) adapter(const __grid_constant__ Parameters p) {
  SHARED(shared);
  int thread = thread_index(), lane = thread & 31, block = block_index();
  Place at = {thread, thread / 32, lane >> 2, lane & 3, block % ROW_TILES * 16, block / ROW_TILES};
  // Of the launches before this one each left 3 GRID arrivals; those of this one are fewer until this block arrives.
  unsigned long long launch = arrived(p.counter) / (3 * GRID), target = launch * 3 * GRID;
  Element* exchange = p.exchange + (launch & 1) * EXCHANGE;
  uint4* other = (uint4*)(p.exchange + (~launch & 1) * EXCHANGE);
  for (int i = block * THREADS + thread; i < EXCHANGE / 8; i += GRID * THREADS)
    other[i] = make_uint4(UNWRITTEN, UNWRITTEN, UNWRITTEN, UNWRITTEN);
  stamp(p.stamps, 0);
  Chain chain = {p, at, shared, exchange, {}, 0};
#pragma unroll 1
  for (int phase = 0; phase < 2; phase++) {
    int tiles = phase ? context_tiles(p) : projection_tiles(p);
#pragma unroll 1
    for (int item = block; item < tiles; item += GRID)
      multiply_tile(at, shared, phase ? context_tile(p, item) : projection_tile(p, item), [&] { if (phase == 0 && item == block) prefetch_weights(p); });
    stamp(p.stamps, 1 + 3 * phase);
    if (phase == 0) {
      int first = block * WARPS + at.warp;
#pragma unroll 1
      for (int token = first; token == first || token < p.vlm_tokens + p.dino_tokens; token += GRID * WARPS)
        finish(p, at, token, [&] { if (token == first) wait_for_all(p.counter, target + GRID, [] {}); });
      stamp(p.stamps, 3);
    }
    wait_for_all(p.counter, target + (2 + phase) * GRID, [&] {
      if (phase == 0 || at.share >= GROUPS) return;
      // The first two products' weights, one to a region.
      chain.fetch(CROSS_OUT);
      chain.turn = 1;
      chain.fetch(UP);
      chain.turn = 0;
      chain.load_residual();
    });
    stamp(p.stamps, 5 + phase);
  }
  if (at.share < GROUPS) chain.run();
}
