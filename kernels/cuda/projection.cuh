// The context: both encoders' tokens projected, normalised and placed. The blocks of a cluster share the contracted axis.

// Where a chunk of 16 bytes of a row of 128 lies, so that no two that are read together share a bank.
DEVICE int swizzled_at(int row, int chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }

DEVICE void* staged(unsigned char* stage, int row, int chunk) { return stage + swizzled_at(row, chunk); }

// A tile [128, COLUMNS] of x W, of which a block makes the part from `first` to `last` of the contracted axis.
struct Projection {
  const Element *x, *weight;
  const float *sums, *table;
  int dim, first, last;
  int rows, tokens;  // from its first on, how many count, those beyond being zeros, and how many exist
  int token, across, split, shift;  // of 1 << shift blocks that share the contracted axis, the block's place
  DEVICE int splits() const { return 1 << shift; }
};

constexpr int ACROSS = HIDDEN / COLUMNS, LEAD = 3;
// Tiles side by side share the statistics of their rows; eight threads take a row.
constexpr int STATISTICS_ROWS = divide_up(128, ACROSS), STATISTICS_PASSES = divide_up(STATISTICS_ROWS, THREADS / 8);
// What a warp makes of a tile: 16 rows as fragments of four columns.
constexpr int WARP_PART = 16 * COLUMNS / 4;

// A round is what a cluster does at a time: CLUSTER >> shift tiles.
DEVICE int rounds_of(int tokens, int shift) { return divide_up(ACROSS * divide_up(tokens, 128) << shift, CLUSTER); }

DEVICE int projection_rounds(const Parameters& p) { return rounds_of(p.vlm_tokens, p.vlm_shift) + rounds_of(p.dino_tokens, p.dino_shift); }

DEVICE Projection projection_of(const Parameters& p, int length, int round) {
  int vlm_rounds = rounds_of(p.vlm_tokens, p.vlm_shift);
  bool vlm = round < vlm_rounds;
  int dim = vlm ? VLM_DIM : DINO_DIM, size = vlm ? p.vlm_split : p.dino_split, tokens = vlm ? p.vlm_tokens : p.dino_tokens;
  int shift = vlm ? p.vlm_shift : p.dino_shift, rank = block_index() % CLUSTER, split = rank & ((1 << shift) - 1);
  int tile = (vlm ? round : round - vlm_rounds) * (CLUSTER >> shift) + (rank >> shift), across = tile % ACROSS, row = tile / ACROSS * 128;
  const Linear& linear = vlm ? p.vlm_projection : p.dino_projection;
  int token = (vlm ? p.dino_tokens : 0) + row, column = across * COLUMNS;
  return {(vlm ? p.vlm : p.dino) + (size_t)row * dim, linear.weight + (size_t)column * dim, linear.sums + column,
          p.table + (size_t)token * HIDDEN + column, dim, split * size, min(dim, (split + 1) * size),
          (vlm ? min(length, tokens) : tokens) - row, tokens - row, token, across, split, shift};
}

// Add what a stage [128, 64] says of the thread's rows.
DEVICE void add_statistics(const Place& at, const Projection& tile, unsigned char* stage, float2 (&sums)[STATISTICS_PASSES]) {
#pragma unroll
  for (int pass = 0; pass < STATISTICS_PASSES; pass++) {
    int row = min(tile.across * STATISTICS_ROWS + (at.thread >> 3) + pass * (THREADS / 8), 127);
    add_squares(sums[pass], *(const uint4*)staged(stage, row, at.thread & 7));
  }
}

// To statistics [splits, tokens] of sums and sums of squares, for whoever finishes these rows.
DEVICE void publish_statistics(const Parameters& p, const Place& at, const Exchange& exchange, const Projection& tile,
                               const float2 (&sums)[STATISTICS_PASSES]) {
  float2* to = exchange.statistics + (size_t)tile.split * (p.vlm_tokens + p.dino_tokens) + tile.token;
#pragma unroll
  for (int pass = 0; pass < STATISTICS_PASSES; pass++) {
    float2 sum = sums[pass];
#pragma unroll
    for (int mask = 1; mask < 8; mask *= 2) sum.x += warp_exchange(sum.x, mask), sum.y += warp_exchange(sum.y, mask);
    int inside = (at.thread >> 3) + pass * (THREADS / 8), row = tile.across * STATISTICS_ROWS + inside;
    if ((at.thread & 7) == 0 && inside < STATISTICS_ROWS && row < min(tile.tokens, 128))
      publish_four(to + row, uint2{__float_as_uint(sum.x), __float_as_uint(sum.y)});
  }
}

// What a thread copies of every stage: rows 32 apart of x, then of the weights. Of every 16 columns these are placed so that a thread's four,
// of two products of eight, lie side by side.
struct StageCopies {
  const Element *x, *weight;
  int dim, rows, count, x_at, weight_at;
  DEVICE StageCopies(const Place& at, const Projection& tile) {
    int row = at.thread >> 3, chunk = at.thread & 7, in = row & 15;
    x = tile.x + (size_t)row * tile.dim + tile.first + chunk * 8, weight = tile.weight + (size_t)row * tile.dim + tile.first + chunk * 8;
    dim = tile.dim, rows = tile.rows - row, count = tile.last - tile.first - chunk * 8;
    x_at = swizzled_at(row, chunk), weight_at = swizzled_at(128 + row - in + ((in >> 1 & 1) << 3) + (in >> 2 << 1) + (in & 1), chunk);
  }
  DEVICE void load(unsigned char* stage, int step) const {
    bool valid = step * 64 < count;
#pragma unroll
    for (int i = 0; i < 4; i++) copy_async(stage + x_at + i * 4096, x + (size_t)i * 32 * dim + step * 64, valid && i * 32 < rows);
#pragma unroll
    for (int i = 0; i < divide_up(COLUMNS, 32); i++)
      if ((i + 1) * 32 <= COLUMNS || thread_index() < (COLUMNS - i * 32) * 8)
        copy_async(stage + weight_at + i * 4096, weight + (size_t)i * 32 * dim + step * 64, valid);
  }
};

// The block's part of a tile, sent to the blocks of the cluster that finish its rows: parts [splits, 8 / splits warps, WARP_PART].
DEVICE void project(const Parameters& p, const Place& at, unsigned char* shared, const Exchange& exchange, const Projection& tile) {
  auto stage_of = [&](int step) { return shared + FRONT_BYTES + step % STAGES * STAGE_BYTES; };
  float sums[COLUMNS / 8][4] = {};
  float2 statistics[STATISTICS_PASSES] = {};
  StageCopies copies(at, tile);
#pragma unroll 1
  for (int step = -LEAD; tile.first + step * 64 < tile.last; step++) {
    if (step >= 0) {
      copy_wait<LEAD - 1>();
      fence_copies();
      block_sync();
    }
    if (tile.first + (step + LEAD) * 64 < tile.last) copies.load(stage_of(step + LEAD), step + LEAD);
    copy_commit();
    if (step < 0) continue;
    unsigned char* stage = stage_of(step);
    multiply_stage(sums, stage + at.warp / 4 * 64 * 128, stage + 128 * 128);
    add_statistics(at, tile, stage, statistics);
    multiplied_before();
  }
  multiplied(sums);
  copy_wait<0>();
  publish_statistics(p, at, exchange, tile, statistics);
  // All of the cluster are there, and have read what was sent before.
  cluster_wait();
  int each = WARPS >> tile.shift, slot = tile.split * each + (at.warp & (each - 1));
  Remote to = remote(shared + (slot * WARP_PART + (at.thread & 31)) * 16, block_index() % CLUSTER - tile.split + (at.warp << tile.shift >> 3));
#pragma unroll
  for (int i = 0; i < COLUMNS / 8; i += 2) {
    store_remote(to + i * 512, make_float4(sums[i][0], sums[i][1], sums[i + 1][0], sums[i + 1][1]));
    store_remote(to + i * 512 + 512, make_float4(sums[i][2], sums[i][3], sums[i + 1][2], sums[i + 1][3]));
  }
}

// Means and 1 / deviations of the rows that the block finishes, while their parts are on their way.
DEVICE void await_statistics(const Parameters& p, const Place& at, unsigned char* shared, const Exchange& exchange, const Projection& tile) {
  if (at.thread >= 128) return;
  int inside = at.thread >> tile.shift, split = at.thread & (tile.splits() - 1), row = tile.split * (128 >> tile.shift) + inside;
  const float2* from = exchange.statistics + (size_t)split * (p.vlm_tokens + p.dino_tokens) + tile.token + row;
  uint2 words = {0, 0};
  await(0, [&] {
    if (row < tile.tokens) words = load_pair(from);
    return max(words.x, words.y);
  });
  float2 sum = {__uint_as_float(words.x), __uint_as_float(words.y)};
#pragma unroll 1
  for (int mask = 1; mask < tile.splits(); mask *= 2) sum.x += warp_exchange(sum.x, mask), sum.y += warp_exchange(sum.y, mask);
  if (split == 0) ((float2*)(shared + SUMS_AT))[inside] = mean_and_scale(sum, tile.dim);
}

// The parts of 128 / splits rows added, once `wait` is over: context [tokens, HIDDEN]. A thread has four columns of four rows at a time.
template <typename Wait>
DEVICE void finish_rows(const Parameters& p, const Place& at, unsigned char* shared, const Exchange& exchange, const Projection& tile, Wait wait) {
  constexpr int EACH = 4;
  int items = (WARPS >> tile.shift) * WARP_PART, first_row = tile.split * (128 >> tile.shift);
  bool first_time = true;
#pragma unroll 1
  for (int first = at.thread; first_time || first < items; first += EACH * THREADS) {
    float4 sums[EACH], places[EACH], value[EACH] = {};
    int rows[EACH], columns[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      int item = first + i * THREADS, in = item % WARP_PART;
      rows[i] = item < items ? item / WARP_PART * 16 + in / 32 % 2 * 8 + in % 32 / 4 : -1, columns[i] = in / 64 * 16 + in % 4 * 4;
      int row = first_row + rows[i];
      if (row >= tile.tokens) rows[i] = -1;
      if (rows[i] < 0) continue;
      sums[i] = *(const float4*)(tile.sums + columns[i]), places[i] = *(const float4*)(tile.table + (size_t)row * HIDDEN + columns[i]);
    }
    if (first_time) wait();
    first_time = false;
#pragma unroll 1
    for (int split = 0; split < tile.splits(); split++)
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        if (rows[i] < 0) continue;
        float4 part = *(const float4*)(shared + (split * items + first + i * THREADS) * 16);
        value[i].x += part.x, value[i].y += part.y, value[i].z += part.z, value[i].w += part.w;
      }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      if (rows[i] < 0) continue;
      float2 statistics = ((const float2*)(shared + SUMS_AT))[rows[i]];
      auto finished = [&](float x, float sum, float place) { return statistics.y * (x - statistics.x * sum) + place; };
      uint2 words = {pack(finished(value[i].x, sums[i].x, places[i].x), finished(value[i].y, sums[i].y, places[i].y)),
                     pack(finished(value[i].z, sums[i].z, places[i].z), finished(value[i].w, sums[i].w, places[i].w))};
      int token = tile.token + first_row + rows[i];
      publish_four(exchange.context + (size_t)token * HIDDEN + tile.across * COLUMNS + columns[i], words);
    }
  }
}

// All that this block makes of the context, which has arrived at its cluster's barrier; `meanwhile` is done while the last parts are on their way.
template <typename Meanwhile>
DEVICE void make_context(const Parameters& p, const Place& at, unsigned char* shared, const Exchange& exchange, int length, Meanwhile meanwhile) {
  int rounds = projection_rounds(p), first = block_index() / CLUSTER;
  if (first >= rounds) cluster_wait(), meanwhile();
#pragma unroll 1
  for (int round = first; round < rounds; round += CLUSTERS) {
    Projection tile = projection_of(p, length, round);
    bool exists = tile.tokens > 0, last = round + CLUSTERS >= rounds;
    if (exists) project(p, at, shared, exchange, tile);
    else cluster_wait();
    cluster_arrive();
    fence_copies();
    block_sync();
    if (last) meanwhile();
    if (exists) await_statistics(p, at, shared, exchange, tile);
    auto wait = [] { block_sync(), cluster_wait(); };
    if (exists) finish_rows(p, at, shared, exchange, tile, wait);
    else wait();
    // The next parts may come.
    if (!last) cluster_arrive();
  }
}
