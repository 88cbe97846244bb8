// Both encoders' tokens projected in parts, and the parts added to the context.

DEVICE void* staged(unsigned char* stage, int row, int chunk) {
  return stage + row * 128 + ((chunk ^ (row & 7)) << 4);
}

// Ask for 64 places, from `place` on, of COUNT rows; what lies beyond `rows` or `last` counts as zeros.
template <int COUNT>
DEVICE void load_rows(const Place& at, unsigned char* target, const Element* operand, int dim, int rows, int place, int last) {
  int chunk = at.thread & 7;
  place += chunk * 8;
#pragma unroll
  for (int i = 0; i < divide_up(COUNT * 8, THREADS); i++) {
    int row = (at.thread >> 3) + i * (THREADS / 8);
    if (row >= COUNT) break;
    bool valid = place < last && row < rows;
    copy_async(staged(target, row, chunk), valid ? operand + (size_t)row * dim + place : operand, valid);
  }
}

// The tokens come in groups of 16, DINO's first, an encoder's last group not always full.
DEVICE int groups_of(int tokens) { return divide_up(tokens, 16); }

// A tile [128, COLUMNS] of parts of x W, over a share of the contracted axis from `first` to `last`. It goes to partial
// [splits, groups, HIDDEN / 16, 16, 16]; its share of the rows' sums and sums of squares to statistics [splits, groups, 16].
struct Projection {
  const Element *x, *weight;
  int rows, dim, first, last;  // how many rows count; those beyond are zeros
  float* partial;
  float2* statistics;
  int across, groups;  // how many columns of tiles lie to the left, how many groups exist from here on
};

constexpr int ACROSS = HIDDEN / COLUMNS, LEAD = 3;
// Tiles side by side share the statistics of their rows; eight threads take a row.
constexpr int STATISTICS_ROWS = divide_up(128, ACROSS), STATISTICS_PASSES = divide_up(STATISTICS_ROWS, THREADS / 8);

DEVICE int projection_tiles(const Parameters& p) {
  return ACROSS * (divide_up(p.vlm_tokens, 128) * p.vlm_splits + divide_up(p.dino_tokens, 128) * p.dino_splits);
}

DEVICE Projection projection_tile(const Parameters& p, int item) {
  int vlm_tiles = ACROSS * divide_up(p.vlm_tokens, 128) * p.vlm_splits;
  bool vlm = item < vlm_tiles;
  int rest = vlm ? item : item - vlm_tiles, splits = vlm ? p.vlm_splits : p.dino_splits;
  int dim = vlm ? VLM_DIM : DINO_DIM, size = vlm ? p.vlm_split : p.dino_split, tokens = vlm ? p.vlm_tokens : p.dino_tokens;
  int across = rest % ACROSS, down = rest / ACROSS / splits, split = rest / ACROSS - down * splits, row = down * 128;
  int group = (vlm ? groups_of(p.dino_tokens) : 0) + row / 16, groups = groups_of(p.dino_tokens) + groups_of(p.vlm_tokens);
  const Element* weight = vlm ? p.vlm_projection.weight : p.dino_projection.weight;
  size_t target = (size_t)split * groups + group;
  return {(vlm ? p.vlm : p.dino) + (size_t)row * dim, weight + (size_t)across * COLUMNS * dim, (vlm ? min(p.lengths[0], tokens) : tokens) - row,
          dim, split * size, min(dim, (split + 1) * size), p.partial + target * 16 * HIDDEN, p.statistics + target * 16, across,
          groups_of(tokens - row)};
}

// Add what a stage [128, 64] says of the thread's rows.
DEVICE void add_statistics(const Place& at, const Projection& tile, unsigned char* stage, float2 (&sums)[STATISTICS_PASSES]) {
#pragma unroll
  for (int pass = 0; pass < STATISTICS_PASSES; pass++) {
    int row = min(tile.across * STATISTICS_ROWS + (at.thread >> 3) + pass * (THREADS / 8), 127);
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

DEVICE void keep_statistics(const Place& at, const Projection& tile, const float2 (&sums)[STATISTICS_PASSES]) {
#pragma unroll
  for (int pass = 0; pass < STATISTICS_PASSES; pass++) {
    float2 sum = sums[pass];
#pragma unroll
    for (int mask = 1; mask < 8; mask *= 2) sum.x += warp_exchange(sum.x, mask), sum.y += warp_exchange(sum.y, mask);
    int inside = (at.thread >> 3) + pass * (THREADS / 8), row = tile.across * STATISTICS_ROWS + inside;
    if ((at.thread & 7) == 0 && inside < STATISTICS_ROWS && row < min(tile.groups * 16, 128)) tile.statistics[row] = sum;
  }
}

// The weights of a stage. Of every 16 columns they are placed so that a thread's four, of two products of eight, lie side by side.
DEVICE void load_projection(const Place& at, unsigned char* stage, const Projection& tile, int step) {
  int place = tile.first + step * 64, chunk = at.thread & 7;
  if (place >= tile.last) return;
  load_rows<128>(at, stage, tile.x, tile.dim, tile.rows, place, tile.last);
  place += chunk * 8;
#pragma unroll
  for (int i = 0; i < divide_up(COLUMNS * 8, THREADS); i++) {
    int column = (at.thread >> 3) + i * (THREADS / 8), in = column & 15;
    if (column >= COLUMNS) break;
    int row = 128 + column - in + ((in >> 1 & 1) << 3) + (in >> 2 << 1) + (in & 1);
    copy_async(staged(stage, row, chunk), tile.weight + (size_t)column * tile.dim + place, place < tile.last);
  }
}

DEVICE void project(const Place& at, unsigned char* shared, const Projection& tile) {
  auto stage_of = [&](int step) { return shared + step % STAGES * STAGE_BYTES; };
  float sums[COLUMNS / 8][4] = {};
  float2 statistics[STATISTICS_PASSES] = {};
#pragma unroll 1
  for (int step = 0; step < LEAD; step++) {
    load_projection(at, stage_of(step), tile, step);
    copy_commit();
  }
#pragma unroll 1
  for (int step = 0; tile.first + step * 64 < tile.last; step++) {
    copy_wait<LEAD - 1>();
    fence_copies();
    block_sync();
    load_projection(at, stage_of(step + LEAD), tile, step + LEAD);
    copy_commit();
    unsigned char* stage = stage_of(step);
    multiply_stage(sums, stage + at.warp / 4 * 64 * 128, stage + 128 * 128);
    add_statistics(at, tile, stage, statistics);
    multiplied_before();
  }
  multiplied(sums);
  copy_wait<0>();
  block_sync();
  if (at.warp < tile.groups) {
    float4* to = (float4*)(tile.partial + (size_t)at.warp * 16 * HIDDEN + tile.across * COLUMNS * 16) + (at.thread & 31);
#pragma unroll
    for (int i = 0; i < COLUMNS / 8; i += 2) {
      to[i * 32] = make_float4(sums[i][0], sums[i][1], sums[i + 1][0], sums[i + 1][1]);
      to[i * 32 + 32] = make_float4(sums[i][2], sums[i][3], sums[i + 1][2], sums[i + 1][3]);
    }
  }
  keep_statistics(at, tile, statistics);
}

// Parts added, normalised, biases and positions added: context [tokens, HIDDEN]. A thread has four columns of SUMMED tokens at a time.
constexpr int SUMMED = 3;

DEVICE void finish_context(const Parameters& p, Element* context) {
  int dino_groups = groups_of(p.dino_tokens), groups = dino_groups + groups_of(p.vlm_tokens), items = groups * HIDDEN * 4;
#pragma unroll 1
  for (int first = block_index() * THREADS + thread_index(); first < items; first += SUMMED * GRID * THREADS) {
    float4 value[SUMMED] = {}, sums[SUMMED], places[SUMMED];
    float2 statistics[SUMMED] = {};
    int tokens[SUMMED], column[SUMMED], dim[SUMMED], splits[SUMMED];
#pragma unroll
    for (int i = 0; i < SUMMED; i++) {
      // Where in [groups, HIDDEN / 16, 16 rows, 4].
      int item = first + i * GRID * THREADS, group = min(item / (HIDDEN * 4), groups - 1), row = item / 4 % 16;
      bool dino = group < dino_groups;
      int in_group = (dino ? group : group - dino_groups) * 16 + row, count = dino ? p.dino_tokens : p.vlm_tokens;
      bool exists = item < items && in_group < count;
      dim[i] = dino ? DINO_DIM : VLM_DIM, splits[i] = exists ? (dino ? p.dino_splits : p.vlm_splits) : 0;
      column[i] = item / 64 % (HIDDEN / 16) * 16 + item % 4 * 4;
      tokens[i] = exists ? in_group + (dino ? 0 : p.dino_tokens) : -1;
      sums[i] = *(const float4*)((dino ? p.dino_projection : p.vlm_projection).sums + column[i]);
      places[i] = *(const float4*)(p.table + (size_t)max(tokens[i], 0) * HIDDEN + column[i]);
    }
#pragma unroll 8
    for (int split = 0; split < max(p.dino_splits, p.vlm_splits); split++)
#pragma unroll
      for (int i = 0; i < SUMMED; i++)
        if (split < splits[i]) {
          size_t item = first + i * GRID * THREADS;
          float4 part = __ldcg((const float4*)p.partial + (size_t)split * items + item);
          float2 more = __ldcg(p.statistics + split * groups * 16 + item / (HIDDEN * 4) * 16 + item / 4 % 16);
          value[i].x += part.x, value[i].y += part.y, value[i].z += part.z, value[i].w += part.w;
          statistics[i].x += more.x, statistics[i].y += more.y;
        }
#pragma unroll
    for (int i = 0; i < SUMMED; i++) {
      if (tokens[i] < 0) continue;
      float mean = statistics[i].x / dim[i], scale = inverse_deviation(statistics[i], mean, dim[i]);
      auto placed_at = [&](float x, float sum, float place) { return scale * (x - mean * sum) + place; };
      uint2 words = {pack(placed_at(value[i].x, sums[i].x, places[i].x), placed_at(value[i].y, sums[i].y, places[i].y)),
                     pack(placed_at(value[i].z, sums[i].z, places[i].z), placed_at(value[i].w, sums[i].w, places[i].w))};
      publish_four(context + (size_t)tokens[i] * HIDDEN + column[i], words);
    }
  }
}
