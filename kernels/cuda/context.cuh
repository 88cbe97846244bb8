// The context: both encoders' tokens projected, finished, and the keys and values that all layers read from them.

DEVICE void* staged(unsigned char* stage, int row, int chunk) {
  return stage + row * 128 + ((chunk ^ (row & 7)) << 4);
}

// A tile [128, COLUMNS] of a product: rows of `a` beyond `a_rows` count as zeros, `b` has COLUMNS; both are row-major, `dim` a row,
// and the contracted axis runs from `first` to `last`. It goes to `parts` as floats, with the sums and squares of some of a's rows to
// `statistics`; or with a bias to `keys` or to `values`.
struct Tile {
  const Element *a, *b;
  int a_rows, dim, first, last;
  float* parts;
  float2* statistics;  // of STATISTICS_ROWS rows from `statistics_row` on
  int statistics_row;
  Element *keys, *values;
  int row, column;  // of keys and values, where the tile begins
  const float* bias;
  int rows, padded_rows;  // how many rows exist, and how many keys and values have from here on
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
  constexpr int CHUNKS = COLUMNS / 8, KEY_LINE = COLUMNS + 8, VALUE_LINE = 128 + 8;
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
      if (down < tile.padded_rows)
        publish_eight(tile.keys + placed(tile.row + down, tile.column + across, HIDDEN), *(const uint4*)(lines + down * KEY_LINE + across));
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
        publish_eight(tile.values + placed_value(tile.row + across, tile.column + down), *(const uint4*)(lines + down * VALUE_LINE + across));
      }
  }
  block_sync();
}

// Ask for 64 places, from that of `step` on, of COUNT rows of a tile's operand; rows from `rows` on are zeros.
template <int COUNT>
DEVICE void load_rows(const Place& at, unsigned char* target, const Tile& tile, int step, const Element* operand, int rows) {
  int chunk = at.thread & 7, place = tile.first + step * 64 + chunk * 8;
#pragma unroll
  for (int i = 0; i < divide_up(COUNT * 8, THREADS); i++) {
    int row = (at.thread >> 3) + i * (THREADS / 8);
    if (row >= COUNT) break;
    bool valid = place < tile.last && row < rows;
    copy_async(staged(target, row, chunk), valid ? operand + (size_t)row * tile.dim + place : tile.b, valid);
  }
}

DEVICE unsigned char* stage_of(unsigned char* shared, int step) { return shared + step % STAGES * STAGE_BYTES; }

DEVICE void load_input(const Place& at, unsigned char* shared, const Tile& tile, int step) {
  if (tile.first + step * 64 < tile.last) load_rows<128>(at, stage_of(shared, step), tile, step, tile.a, tile.a_rows);
}

DEVICE void load_weights(const Place& at, unsigned char* shared, const Tile& tile, int step) {
  if (tile.first + step * 64 < tile.last) load_rows<COLUMNS>(at, stage_of(shared, step) + 128 * 128, tile, step, tile.b, COLUMNS);
}

constexpr int LEAD = 3;
constexpr int ACROSS = HIDDEN / COLUMNS;
// Tiles side by side share the statistics of their rows; eight threads take a row.
constexpr int STATISTICS_ROWS = divide_up(128, ACROSS), STATISTICS_PASSES = divide_up(STATISTICS_ROWS, THREADS / 8);

// Add what a stage [128, 64] says of the thread's rows.
DEVICE void add_statistics(const Place& at, const Tile& tile, unsigned char* stage, float2 (&sums)[STATISTICS_PASSES]) {
#pragma unroll
  for (int pass = 0; pass < STATISTICS_PASSES; pass++) {
    int row = min(tile.statistics_row + (at.thread >> 3) + pass * (THREADS / 8), 127);
    uint4 chunk = *(const uint4*)staged(stage, row, at.thread & 7);
    const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float2 pair = unpack(words[i]);
      sums[pass].x += pair.x + pair.y;
      sums[pass].y += pair.x * pair.x + pair.y * pair.y;
    }
  }
}

DEVICE void keep_statistics(const Place& at, const Tile& tile, const float2 (&sums)[STATISTICS_PASSES]) {
#pragma unroll
  for (int pass = 0; pass < STATISTICS_PASSES; pass++) {
    float2 sum = sums[pass];
#pragma unroll
    for (int mask = 1; mask < 8; mask *= 2) sum.x += warp_exchange(sum.x, mask), sum.y += warp_exchange(sum.y, mask);
    int inside = (at.thread >> 3) + pass * (THREADS / 8), row = tile.statistics_row + inside;
    if ((at.thread & 7) == 0 && inside < STATISTICS_ROWS && row < min(tile.rows, 128)) tile.statistics[row] = sum;
  }
}

// A tile whose operands both lie ready.
DEVICE void multiply_tile(const Place& at, unsigned char* shared, const Tile& tile) {
  float sums[COLUMNS / 8][4] = {};
  float2 statistics[STATISTICS_PASSES] = {};
#pragma unroll 1
  for (int step = 0; step < LEAD; step++) {
    load_weights(at, shared, tile, step);
    load_input(at, shared, tile, step);
    copy_commit();
  }
#pragma unroll 1
  for (int step = 0; tile.first + step * 64 < tile.last; step++) {
    copy_wait<LEAD - 1>();
    fence_copies();
    block_sync();
    load_weights(at, shared, tile, step + LEAD);
    load_input(at, shared, tile, step + LEAD);
    copy_commit();
    unsigned char* stage = stage_of(shared, step);
    multiply_stage(sums, stage + at.warp / 4 * 64 * 128, stage + 128 * 128);
    add_statistics(at, tile, stage, statistics);
    multiplied_before();
  }
  multiplied(sums);
  copy_wait<0>();
  block_sync();
  keep_parts(tile, at.warp * 16 + at.group, at.quad * 2, sums);
  keep_statistics(at, tile, statistics);
}

// The weights of as many steps as there are stages, which need not wait for what makes a tile's input.
DEVICE void load_stage_weights(const Place& at, unsigned char* shared, const Tile& tile, int first) {
#pragma unroll 1
  for (int step = first; step < first + STAGES; step++) load_weights(at, shared, tile, step);
  copy_commit();
}

// A tile whose input others are writing, with `ahead` if the weights of its first stages are under way.
DEVICE void multiply_growing_tile(const Place& at, unsigned char* shared, const Tile& tile, bool ahead) {
  int row = at.warp * 16 + at.group, column = at.quad * 2;
  float sums[COLUMNS / 8][4] = {};
  float2 bias[COLUMNS / 8];
#pragma unroll
  for (int i = 0; i < COLUMNS / 8; i++) bias[i] = *(const float2*)(tile.bias + column + i * 8);
#pragma unroll 1
  for (int first = 0; first * 64 < tile.last; first += STAGES) {
    if (!ahead || first) load_stage_weights(at, shared, tile, first);
    uint4 rows[STAGES][4];
    auto ask = [&](int stage) {
      int place = (first + stage) * 64 + (at.thread & 7) * 8;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int row = (at.thread >> 3) + i * 32;
        rows[stage][i] = make_uint4(0, 0, 0, 0);
        if (row < tile.a_rows && place < tile.last) rows[stage][i] = load_fresh(tile.a + (size_t)row * tile.dim + place);
      }
    };
#pragma unroll
    for (int stage = 0; stage < STAGES; stage++) ask(stage);
    copy_wait<0>();
#pragma unroll
    for (int stage = 0; stage < STAGES; stage++) {
      while (true) {
        uint32_t largest = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) largest = max(largest, largest_word(rows[stage][i]));
        if (warp_all(largest != UNWRITTEN)) break;
        relax(REST);
        ask(stage);
      }
      unsigned char* target = stage_of(shared, stage);
#pragma unroll
      for (int i = 0; i < 4; i++) *(uint4*)staged(target, (at.thread >> 3) + i * 32, at.thread & 7) = rows[stage][i];
      fence_copies();
      block_sync();
      if ((first + stage) * 64 < tile.last) multiply_stage(sums, target + at.warp / 4 * 64 * 128, target + 128 * 128);
    }
    multiplied(sums);
    block_sync();
  }
  keep_elements(at, shared, tile, row, column, sums, bias);
}

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
          p.partial + target * HIDDEN + across * COLUMNS, p.statistics + target, across * STATISTICS_ROWS, nullptr, nullptr, 0, 0, nullptr,
          tokens - row, 0};
}

// Keys and values [LAYERS, padded * HIDDEN] of the context.
DEVICE int context_tiles(const Parameters& p) { return 2 * LAYERS * ACROSS * divide_up(p.vlm_tokens + p.dino_tokens, 128); }

DEVICE Tile context_tile(const Parameters& p, const Exchange& exchange, int item) {
  int total = p.vlm_tokens + p.dino_tokens, padded = divide_up(total, 32) * 32, down = divide_up(total, 128);
  int part = item / (ACROSS * down), inside = (item - part * ACROSS * down) % ACROSS * COLUMNS;
  int row = (item - part * ACROSS * down) / ACROSS * 128, column = part * HIDDEN + inside;
  Element* target = (part & 1 ? exchange.values : exchange.keys) + (size_t)(part >> 1) * padded * HIDDEN;
  return {exchange.context + (size_t)row * HIDDEN, p.keys_values.weight + (size_t)column * HIDDEN, total - row, HIDDEN, 0, HIDDEN,
          nullptr, nullptr, 0, part & 1 ? nullptr : target, part & 1 ? target : nullptr, row, inside, p.keys_values.bias + column, total - row,
          padded - row};
}

// context [tokens, HIDDEN]: parts added, normalised, biases and positions added; a warp a token. What does not depend on the parts is
// asked for before `wait`.
template <typename Wait>
DEVICE void finish(const Parameters& p, const Place& at, Element* context, int token, Wait wait) {
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
      publish(context + (size_t)token * HIDDEN + (i * 32 + lane) * 2,
              pack(scale * (value[i].x - mean * sum[i].x) + place[i].x, scale * (value[i].y - mean * sum[i].y) + place[i].y));
}
