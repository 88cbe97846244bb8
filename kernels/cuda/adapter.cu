// The whole adapter in one cooperative launch: GRID blocks of 256 threads stay until the clip is translated.
//
// First the context: both encoders' tokens projected, split over the contracted axis; parts added, normalised and placed;
// keys and values of all layers. These three steps are separated by barriers over the grid. Then the chain of short steps
// on the queries. A block has one tile of 16 query rows and a share of every product's columns, and there is no barrier:
// a result is written over a pattern that no result has (UNWRITTEN), and whoever needs it reads until the pattern is
// gone. There are two sets of such buffers; a launch uses one and clears the other for the launch after it.
//
// A block executes most of its instructions once or a few times, and waits for each line of them that it meets for the first time. So one
// routine does all products of the chain, loops are rarely unrolled, and nothing is inlined twice.
//
// Fragments are 16 bytes a lane: the contracted axis may be permuted at will as long as both sides are, so that in every 32 of its places
// lane t of a quad holds places 8 t to 8 t + 7. Weights of the chain lie in memory in that order and come two products ahead.

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
constexpr int LAYER_EXCHANGE = LOGS + 2 * 4 * ROWS * HEADS, EXCHANGE = LAYERS * LAYER_EXCHANGE;

__host__ __device__ constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }

__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }

// Most units of 8 columns that a block has of a product with so many columns; those that end in HIDDEN columns, and the wide ones.
__host__ __device__ constexpr int block_units(int width) { return divide_up(width / 8, GROUPS); }
constexpr int NARROW = block_units(HIDDEN), WIDE = larger(larger(block_units(3 * HIDDEN), block_units(FF)), block_units(OUT / OUT_PASSES));
static_assert(NARROW <= 4 && WIDE <= 10, "columns of a block");

// Shared memory: the pipeline of the context's products, later the weights of two products of the chain; the chain's input, then sums
// of eight slices of the contracted axis; what is added to the columns.
constexpr int STAGES = 4, STAGE_BYTES = (128 + COLUMNS) * 128, LINE = 88;
constexpr int EVEN_REGION = 16 * larger(NARROW * larger(HIDDEN, FF), WIDE * HIDDEN), ODD_REGION = 16 * larger(NARROW, WIDE) * HIDDEN;
constexpr int STAGING_AT = larger(STAGES * STAGE_BYTES, EVEN_REGION + ODD_REGION);
constexpr int TRIM_AT = STAGING_AT + larger(16 * 2 * larger(HIDDEN, FF), WARPS * 16 * LINE * 4);
constexpr int ARRIVALS_AT = TRIM_AT + 1024, SHARED_BYTES = ARRIVALS_AT + 2 * 8;
static_assert(SHARED_BYTES == EXPECTED_SHARED_BYTES && EXCHANGE == EXPECTED_EXCHANGE, "kernels/persistent.py");

struct Place {
  int thread, warp, group, quad;  // group: lane / 4, a row or column of a fragment; quad: lane % 4, its eighth of 32 places
  int rows, share;                // the block's first query row, and which of GROUPS it is
};

// UNWRITTEN is the largest of numbers, so that the largest word says whether any is unwritten.
DEVICE uint32_t largest_word(uint4 v) { return max(max(v.x, v.y), max(v.z, v.w)); }

DEVICE uint32_t largest_log(uint4 v) { return max(SPLITS > 0 ? v.x : 0, max(SPLITS > 1 ? v.y : 0, SPLITS > 2 ? v.z : 0)); }

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
    if (row + half * 8 < tile.rows)
#pragma unroll
      for (int i = 0; i < COLUMNS / 8; i++)
        *(float2*)(tile.parts + (row + half * 8) * HIDDEN + column + i * 8) = make_float2(sums[i][half * 2], sums[i][half * 2 + 1]);
}

// As elements, laid out in shared memory first, so that memory is written 16 bytes at a time.
DEVICE void keep_elements(const Place& at, unsigned char* shared, const Tile& tile, int row, int column, const float (&sums)[COLUMNS / 8][4],
                          const float2 (&bias)[COLUMNS / 8]) {
  // Odd multiples of 16 bytes spread the lines over the banks.
  constexpr int CHUNKS = COLUMNS / 8, KEY_LINE = CHUNKS % 2 ? COLUMNS : COLUMNS + 8, VALUE_LINE = 128 + 8;
  Element* lines = (Element*)shared;
  if (tile.keys) {
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        *(uint32_t*)(lines + (row + half * 8) * KEY_LINE + column + i * 8) = pack(sums[i][half * 2] + bias[i].x, sums[i][half * 2 + 1] + bias[i].y);
    block_sync();
#pragma unroll
    for (int i = 0; i < 128 * CHUNKS / THREADS; i++) {
      int down = (at.thread + i * THREADS) / CHUNKS, across = (at.thread + i * THREADS) % CHUNKS * 8;
      if (down < tile.padded_rows) *(uint4*)(tile.keys + down * HIDDEN + across) = *(const uint4*)(lines + down * KEY_LINE + across);
    }
  } else {
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        uint32_t pair = pack(sums[i][half * 2] + bias[i].x, sums[i][half * 2 + 1] + bias[i].y);
        Element* to = lines + (column + i * 8) * VALUE_LINE + row + half * 8;
        to[0] = (Element)(pair & 0xffff), to[VALUE_LINE] = (Element)(pair >> 16);
      }
    block_sync();
    // The rows of a last tile that do not exist are written as far as the buffer goes.
    int across = (at.thread & 15) * 8;
    if (across < tile.padded_rows)
#pragma unroll
      for (int i = 0; i < COLUMNS / 16; i++) {
        int down = (at.thread >> 4) + i * 16;
        *(uint4*)(tile.values + down * tile.padded + across) = *(const uint4*)(lines + down * VALUE_LINE + across);
      }
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
  int row = at.warp * 16 + at.group, column = at.quad * 2;
  float sums[COLUMNS / 8][4] = {}, total = 0, squares = 0;
  float2 bias[COLUMNS / 8] = {};
  if (tile.bias)
#pragma unroll
    for (int i = 0; i < COLUMNS / 8; i++) bias[i] = *(const float2*)(tile.bias + column + i * 8);
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
  if (tile.parts) keep_parts(tile, row, column, sums);
  else keep_elements(at, shared, tile, row, column, sums, bias);
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
  int across = rest % ACROSS, down = rest / ACROSS / splits, split = rest / ACROSS - down * splits, row = down * 128;
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
  int part = item / (ACROSS * down), inside = (item - part * ACROSS * down) % ACROSS * COLUMNS;
  int row = (item - part * ACROSS * down) / ACROSS * 128, column = part * HIDDEN + inside;
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
#pragma unroll 4
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

// A product's weight lies as its fragments do: [units of 8 rows, blocks of 32 columns, lanes, 8], see fragments() in persistent.py. A block's
// units are one piece of it, which the first warp asks for.
DEVICE void fetch_weights(const Place& at, const Element* weight, int width, int dim, unsigned char* region, uint64_t* arrival) {
  if (at.warp > 0) return;
  Units units(at, width);
  if (at.thread == 0) expect_bytes(arrival, (units.last - units.first) * dim * 16);
  warp_sync();
  for (int unit = at.thread; unit < units.last - units.first; unit += 32)
    copy_bulk(region + unit * dim * 16, weight + (size_t)(units.first + unit) * dim * 8, dim * 16, arrival);
}

// Where the 16 bytes `chunk` of a row of a product's input lie, as fragments do.
DEVICE uint4* input_chunk(unsigned char* staging, int row, int chunk) {
  return (uint4*)staging + ((chunk >> 2) * 2 + (row >> 3)) * 32 + (row & 7) * 4 + (chunk & 3);
}

// Wait for the block's 16 rows of x [ROWS, dim], and leave them as fragments: sixteen threads a row.
DEVICE void take(const Place& at, const Element* x, int dim, unsigned char* staging) {
  constexpr int BATCH = 7;
  int row = at.thread >> 4, last = dim / 8 - 1;
  const Element* from = x + (at.rows + row) * dim;
#pragma unroll 1
  for (int batch = 0; batch <= last; batch += 16 * BATCH) {
    int first = batch + (at.thread & 15);
    uint4 v[BATCH] = {};
    while (true) {
      uint32_t largest = 0;
#pragma unroll
      for (int i = 0; i < BATCH; i++)
        if (batch + i * 16 <= last) v[i] = load_fresh(from + min(first + i * 16, last) * 8);
#pragma unroll
      for (int i = 0; i < BATCH; i++) largest = max(largest, largest_word(v[i]));
      if (warp_all(largest != UNWRITTEN)) break;
      relax();
    }
#pragma unroll
    for (int i = 0; i < BATCH; i++)
      if (batch + i * 16 <= last) *input_chunk(staging, row, min(first + i * 16, last)) = v[i];
  }
}

// As `take`, of an attention whose parts over the context [SPLITS, ROWS, HIDDEN] come with logs of their sums [ROWS, HEADS, 4].
DEVICE void take_merged(const Place& at, const Element* parts, const uint32_t* logs, unsigned char* staging) {
  constexpr int CHUNKS = divide_up(HIDDEN / 8, 16);
  uint4 part[CHUNKS][SPLITS], log[CHUNKS];
  int row = at.thread >> 4, chunk[CHUNKS];
#pragma unroll
  for (int i = 0; i < CHUNKS; i++) chunk[i] = min((at.thread & 15) + i * 16, HIDDEN / 8 - 1);
  // The logs are little to ask for again and again; the parts are mostly there when they are.
  while (true) {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) log[i] = load_fresh(logs + ((at.rows + row) * HEADS + chunk[i] / 8) * 4);
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) largest = max(largest, largest_log(log[i]));
    if (warp_all(largest != UNWRITTEN)) break;
    relax();
  }
  while (true) {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
#pragma unroll
      for (int s = 0; s < SPLITS; s++) part[i][s] = load_fresh(parts + (s * ROWS + at.rows + row) * HIDDEN + chunk[i] * 8);
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
#pragma unroll
      for (int s = 0; s < SPLITS; s++) largest = max(largest, largest_word(part[i][s]));
    if (warp_all(largest != UNWRITTEN)) break;
    relax();
  }
#pragma unroll
  for (int i = 0; i < CHUNKS; i++) {
    const uint32_t words[4] = {log[i].x, log[i].y, log[i].z, log[i].w};
    float largest = EMPTY, total = 0, share[SPLITS];
#pragma unroll
    for (int s = 0; s < SPLITS; s++) largest = fmaxf(largest, __uint_as_float(words[s]));
#pragma unroll
    for (int s = 0; s < SPLITS; s++) total += share[s] = power_of_two(__uint_as_float(words[s]) - largest);
    float scale = reciprocal(total);
    uint32_t merged[4];
#pragma unroll
    for (int word = 0; word < 4; word++) {
      float x = 0, y = 0;
#pragma unroll
      for (int s = 0; s < SPLITS; s++) {
        const uint32_t pairs[4] = {part[i][s].x, part[i][s].y, part[i][s].z, part[i][s].w};
        float2 pair = unpack(pairs[word]);
        x += share[s] * pair.x;
        y += share[s] * pair.y;
      }
      merged[word] = pack(x * scale, y * scale);
    }
    *input_chunk(staging, row, chunk[i]) = make_uint4(merged[0], merged[1], merged[2], merged[3]);
  }
}

// Mean and 1 / deviation of a row of HIDDEN, for its sixteen threads.
DEVICE float2 row_statistics(const Place& at, unsigned char* staging) {
  float2 sum = {0, 0};
#pragma unroll 1
  for (int chunk = at.thread & 15; chunk < HIDDEN / 8; chunk += 16) {
    uint4 v = *input_chunk(staging, at.thread >> 4, chunk);
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float2 pair = unpack(words[i]);
      sum.x += pair.x + pair.y;
      sum.y += pair.x * pair.x + pair.y * pair.y;
    }
  }
#pragma unroll
  for (int mask = 1; mask < 16; mask *= 2) sum.x += warp_exchange(sum.x, mask), sum.y += warp_exchange(sum.y, mask);
  float mean = sum.x / HIDDEN;
  return make_float2(mean, inverse_deviation(sum, mean, HIDDEN));
}

// Leave the sums [WARPS, 16, LINE] of each warp's slice of the contracted axis in the input's place.
template <int UNITS>
DEVICE void multiply_rows(const Place& at, int units, int dim, unsigned char* staging, const unsigned char* region) {
  float result[UNITS][4] = {};
  int lane = at.thread & 31;
#pragma unroll 1
  for (int block = at.warp; block < dim / 32; block += WARPS) {
    const uint4 a[2] = {((const uint4*)staging)[block * 64 + lane], ((const uint4*)staging)[block * 64 + 32 + lane]};
#pragma unroll
    for (int i = 0; i < UNITS; i++)
      // A unit too many is computed again, which needs no branch.
      multiply_32(result[i], a, ((const uint4*)region)[(max(min(i, units - 1), 0) * (dim / 32) + block) * 32 + lane]);
  }
  block_sync();
  float* sums = (float*)staging + (at.warp * 16 + at.group) * LINE + at.quad * 2;
#pragma unroll
  for (int i = 0; i < UNITS; i++) {
    *(float2*)(sums + i * 8) = make_float2(result[i][0], result[i][1]);
    *(float2*)(sums + 8 * LINE + i * 8) = make_float2(result[i][2], result[i][3]);
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

// Attention of the block's rows in one head over blocks of 32 keys, a warp a block at a time. Keys [*, HEAD] and values [HEAD, *]
// with their strides, `limit` of them; `count` keys take part. If `growing` they are still being written, and no warp has more than one
// block. Writes [ROWS, HIDDEN] and, unless null, logs [ROWS, HEADS, 4].
DEVICE void attend(const Place& at, unsigned char* shared, const Element* query, int query_stride, const Element* keys, int key_stride,
                   const Element* values, int value_stride, int first, int last, int count, int limit, bool growing, Element* output, float* logs) {
  float largest[2] = {EMPTY, EMPTY}, total[2] = {0, 0}, mixed[8][4] = {};
  uint4 q[2][2], k[4][2], v[8];
  bool first_time = true;
  // Every block has a key that counts, so that those that do not end as zeros.
  last = min(last, divide_up(count, 32));
  for (int block = first + at.warp; block < last; block += WARPS) {
    int base = block * 32;
    auto load_keys_values = [&] {
#pragma unroll
      for (int tile = 0; tile < 4; tile++) {
        int key = base + (at.group >> 1) * 8 + tile * 2 + (at.group & 1);
#pragma unroll
        for (int half = 0; half < 2; half++) k[tile][half] = load_fresh(keys + min(key, limit - 1) * key_stride + half * 32 + at.quad * 8);
      }
#pragma unroll
      for (int tile = 0; tile < 8; tile++)
        v[tile] = load_fresh(values + (tile * 8 + at.group) * value_stride + min(base + at.quad * 8, limit - 8));
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
        scores[tile][i] = power_of_two(scores[tile][i] - largest[i >> 1]);
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
  float2* heads = (float2*)(shared + TRIM_AT);
  float* mixtures = (float*)(shared + STAGING_AT);
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
  int row = at.thread >> 4, column = (at.thread & 15) * 4;
  float peak = EMPTY, sum = 0, merged[4] = {};
#pragma unroll
  for (int warp = 0; warp < WARPS; warp++) peak = fmaxf(peak, heads[warp * 16 + row].x);
#pragma unroll 2
  for (int warp = 0; warp < WARPS; warp++) {
    float2 part = heads[warp * 16 + row], x = *(const float2*)(mixtures + (warp * 16 + row) * STRIDE + column);
    float2 y = *(const float2*)(mixtures + (warp * 16 + row) * STRIDE + column + 2);
    float share = power_of_two(part.x - peak);
    sum += share * part.y;
    merged[0] += share * x.x, merged[1] += share * x.y, merged[2] += share * y.x, merged[3] += share * y.y;
  }
  float scale = sum == 0 ? 0 : reciprocal(sum);
  Element* to = output + (at.rows + row) * HIDDEN + column;
  publish(to, pack(merged[0] * scale, merged[1] * scale));
  publish(to + 2, pack(merged[2] * scale, merged[3] * scale));
  if (logs && (at.thread & 15) == 0) {
    float log = sum == 0 ? EMPTY : peak + logarithm_of_two(sum);
    publish(logs + (at.rows + row) * HEADS * 4, log != log ? 0x7fffffffu : __float_as_uint(log));
  }
  // The next step writes where this one still reads.
  block_sync();
}

struct Chain {
  const Parameters& p;
  Place at;
  unsigned char* shared;
  Element* exchange;
  float2 residual;  // of this thread's columns, where a product has one
  int turn;         // of products; its parity says which region of weights is meant

  DEVICE unsigned char* region() const { return shared + (turn & 1) * EVEN_REGION; }
  DEVICE uint64_t* arrival() const { return (uint64_t*)(shared + ARRIVALS_AT) + (turn & 1); }

  DEVICE void fetch(int step) {
    if (step >= LAST_STEP) return;
    int kind = kind_of(step);
    fetch_weights(at, p.products[step].weight, width_of(kind), kind == DOWN ? FF : HIDDEN, region(), arrival());
  }

  DEVICE void load_residual() {
    Units units(at, HIDDEN);
    int row = at.rows + (at.thread >> 4), column = units.first * 8 + (at.thread & 15) * 2;
    residual = make_float2(0, 0);
    if (row < QUERIES && column < units.last * 8) residual = *(const float2*)(p.hidden_states + row * HIDDEN + column);
  }

  // A product, with the norm before it and GELU or the residual after it. It writes the next step's input: for QKV queries and keys
  // [ROWS, 2 HIDDEN] and values [HIDDEN, ROWS], else [ROWS, width]; behind the last layer a part of the output.
  DEVICE void product(int step, int kind, Element* own) {
    Element* before = own - LAYER_EXCHANGE;
    bool norm = kind != CROSS_OUT && kind != SELF_OUT && kind != DOWN;
    int dim = kind == DOWN ? FF : HIDDEN, width = width_of(kind);
    Units units(at, width);
    unsigned char* staging = shared + STAGING_AT;
    // Asked for ahead, and for as many columns as there are threads.
    const Linear& linear = p.products[step];
    int column = units.first * 8 + at.thread;
    float bias = 0, sum = 0;
    if (column < units.last * 8) {
      bias = linear.bias[column];
      if (norm) sum = linear.sums[column];
    }
    // What the product before this has left there was read by all.
    block_sync();
    if (kind == CROSS_OUT) take_merged(at, own + PARTS, (const uint32_t*)(own + LOGS), staging);
    else take(at, kind == QKV || kind == KINDS ? before + AFTER_FF : own + (kind == SELF_OUT ? MIXED : kind == QUERY_OUT ? AFTER_SELF : kind == UP ? AFTER_CROSS : RAISED), dim, staging);
    float2 *trim = (float2*)(shared + TRIM_AT), statistics = make_float2(0, 1);
    if (column < units.last * 8) trim[at.thread] = make_float2(bias, sum);
    if (norm) statistics = row_statistics(at, staging);
    stamp(p.stamps, 6 + 2 * step);
    block_sync();
    wait_for_bytes(arrival(), turn >> 1 & 1);
    int count = units.last - units.first;
    if (width == HIDDEN) multiply_rows<NARROW>(at, count, dim, staging, region());
    else multiply_rows<WIDE>(at, count, dim, staging, region());

    int row = at.rows + (at.thread >> 4);
#pragma unroll 1
    for (int inside = (at.thread & 15) * 2; (inside & ~31) < count * 8; inside += 32) {
      const float* sums = (const float*)staging + (at.thread >> 4) * LINE + inside;
      float x = 0, y = 0;
#pragma unroll
      for (int slice = 0; slice < WARPS; slice++) {
        float2 part = *(const float2*)(sums + slice * 16 * LINE);
        x += part.x;
        y += part.y;
      }
      float2 left = trim[inside], right = trim[inside + 1];
      x = statistics.y * (x - statistics.x * left.y) + left.x;
      y = statistics.y * (y - statistics.x * right.y) + right.x;
      if (kind == UP) x = gelu(x), y = gelu(y);
      if (!norm) x = residual.x += x, y = residual.y += y;
      int to_column = units.first * 8 + inside;
      uint32_t pair = pack(x, y);
      Element* to = kind == KINDS ? p.output + (step - OUT_STEP) * width + row * OUT + to_column
                                  : own + (kind == QKV ? QUERY_KEYS : kind == SELF_OUT ? AFTER_SELF : kind == QUERY_OUT ? QUERY
                                           : kind == CROSS_OUT ? AFTER_CROSS : kind == UP ? RAISED : AFTER_FF) + row * (kind == QKV ? 2 * HIDDEN : width) + to_column;
      if (kind == QKV) {
        // Two rows of a column lie side by side among the values; the next row's thread is 16 lanes away.
        bool odd = row & 1;
        float other = warp_exchange(odd ? x : y, 16);
        if (to_column >= 2 * HIDDEN) {
          to = own + VALUES + (to_column - 2 * HIDDEN + odd) * ROWS + row - odd;
          pair = odd ? pack(other, y) : pack(x, other);
        }
      }
      if (inside < count * 8 && (kind != KINDS || row < QUERIES)) publish(to, pair);
    }
    fetch(next_product(next_product(step)));
    turn++;
    stamp(p.stamps, 7 + 2 * step);
  }

  DEVICE void attend_in(int kind, int layer) {
    Element* own = exchange + layer * LAYER_EXCHANGE;
    int head = at.share % HEADS, split = at.share / HEADS;
    if (split >= (kind == SELF_ATTEND ? 1 : SPLITS)) return;
    bool self = kind == SELF_ATTEND;
    int total = p.vlm_tokens + p.dino_tokens, padded = divide_up(total, 32) * 32, each = divide_up(padded / 32, SPLITS);
    size_t start = (size_t)layer * padded * HIDDEN;
    int first = self ? 0 : split * each, last = self ? divide_up(QUERIES, 32) : min(padded / 32, first + each);
    const Element *query = self ? own + QUERY_KEYS : layer ? own + QUERY : p.query;
    const Element *keys = self ? own + QUERY_KEYS + HIDDEN : p.keys + start;
    const Element *values = self ? own + VALUES + head * HEAD * ROWS : p.values + start + (size_t)head * HEAD * padded;
    attend(at, shared, query + head * HEAD, self ? 2 * HIDDEN : HIDDEN, keys + head * HEAD, self ? 2 * HIDDEN : HIDDEN, values,
           self ? ROWS : padded, first, last, self ? QUERIES : min(p.dino_tokens + p.lengths[0], total), self ? ROWS : padded, self,
           own + (self ? MIXED : PARTS + split * ROWS * HIDDEN) + head * HEAD, self ? nullptr : (float*)(own + LOGS) + head * 4 + split);
  }

  DEVICE void run() {
#pragma unroll 1
    for (int step = CROSS_ATTEND; step < LAST_STEP; step++) {
      int layer = step / KINDS, kind = kind_of(step);
      if (kind == SELF_ATTEND || kind == CROSS_ATTEND) {
        attend_in(kind, layer);
        stamp(p.stamps, 7 + 2 * step);
      } else {
        product(step, kind, exchange + layer * LAYER_EXCHANGE);
      }
    }
  }
};

// The weights of the chain come from memory while the context is made: each block asks for a piece of each, a thread a product.
DEVICE void prefetch_weights(const Parameters& p) {
  int step = CROSS_OUT;
  for (int i = 0; i < thread_index() && step < LAST_STEP; i++) step = next_product(step);
  if (step >= LAST_STEP) return;
  int kind = kind_of(step), size = width_of(kind) * (kind == DOWN ? FF : HIDDEN), piece = divide_up(size / 64, GRID) * 64;
  int first = block_index() * piece;
  if (first < size) prefetch(p.products[step].weight + first, 2 * min(piece, size - first));
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
  if (thread < 2) begin_arrivals((uint64_t*)(shared + ARRIVALS_AT) + thread);
  stamp(p.stamps, 0);
  Chain chain = {p, at, shared, exchange, {0, 0}, 0};
#pragma unroll 1
  for (int phase = 0; phase < 2; phase++) {
    int tiles = phase ? context_tiles(p) : projection_tiles(p);
#pragma unroll 1
    for (int item = block; item < tiles; item += GRID)
      multiply_tile(at, shared, phase ? context_tile(p, item) : projection_tile(p, item), [&] { if (phase == 0 && item == block) prefetch_weights(p); });
    stamp(p.stamps, 1 + 3 * phase);
    if (phase == 0) {
      int first = at.warp * GRID + block;
#pragma unroll 1
      for (int token = first; token == first || token < p.vlm_tokens + p.dino_tokens; token += GRID * WARPS)
        finish(p, at, token, [&] { if (token == first) wait_for_all(p.counter, target + GRID, [] {}); });
      stamp(p.stamps, 3);
    }
    wait_for_all(p.counter, target + (2 + phase) * GRID, [&] {
      if (phase == 0 || at.share >= GROUPS) return;
      // The first two products' weights, one to a region, where the context's tiles were.
      publish_stage();
#pragma unroll 1
      for (chain.turn = 0; chain.turn < 2; chain.turn++) chain.fetch(CROSS_OUT + chain.turn);
      chain.turn = 0;
      chain.load_residual();
    });
    stamp(p.stamps, 5 + phase);
  }
  if (at.share < GROUPS) chain.run();
}
