// The keys and values that all layers read from the context: [LAYERS, padded * HIDDEN] each, placed as fragments are read.

constexpr int CONTEXT_STEPS = HIDDEN / 64, KEY_VALUE_COLUMNS = 2 * LAYERS * HIDDEN;
// A block keeps the weights of its columns, half of them for each four warps, and takes 64 tokens after the other. In memory the weights lie
// as they do in a block, [KV_TILES, steps, KV_COLUMNS, 64], chunks swizzled by `staged`, with zeros behind the last column.
constexpr int HALF_COLUMNS = KV_COLUMNS / 2, KV_TILES = divide_up(KEY_VALUE_COLUMNS, KV_COLUMNS), KV_ROWS = GRID / KV_TILES;

struct KeysValues {
  const Parameters& p;
  const Place& at;
  unsigned char* shared;
  const Exchange& exchange;
  uint4 rows[CONTEXT_STEPS][2];  // the thread's part of a tile's tokens

  DEVICE int total() const { return p.vlm_tokens + p.dino_tokens; }
  DEVICE int first_column() const { return block_index() % KV_TILES * KV_COLUMNS; }
  DEVICE uint64_t* arrival() const { return (uint64_t*)(shared + ARRIVALS_AT) + 2; }
  DEVICE unsigned char* input(int step) const { return shared + step * 64 * 128; }
  DEVICE unsigned char* weights(int step) const { return shared + FRONT_BYTES + step * KV_COLUMNS * 128; }

  // Which need not wait for the context.
  DEVICE void load_weights() {
    constexpr int BYTES = KV_COLUMNS * HIDDEN * 2;
    if (at.thread > 0) return;
    expect_bytes(arrival(), BYTES);
    copy_bulk(shared + FRONT_BYTES, p.key_value_weights + (size_t)(block_index() % KV_TILES) * (BYTES / 2), BYTES, arrival());
  }

  DEVICE void ask(int token) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int row = token + (at.thread >> 3) + i * 32;
      const Element* from = exchange.context + (size_t)row * HIDDEN + (at.thread & 7) * 8;
#pragma unroll
      for (int step = 0; step < CONTEXT_STEPS; step++) {
        rows[step][i] = make_uint4(0, 0, 0, 0);
        if (row < total()) rows[step][i] = load_fresh(from + step * 64);
      }
    }
  }

  DEVICE uint32_t largest() const {
    uint32_t largest = 0;
#pragma unroll
    for (int step = 0; step < CONTEXT_STEPS; step++) largest = max(largest, max(largest_word(rows[step][0]), largest_word(rows[step][1])));
    return largest;
  }

  DEVICE void run() {
    int row_tile = block_index() / KV_TILES;
    if (row_tile >= KV_ROWS) return;
    float2 bias[HALF_COLUMNS / 8];
#pragma unroll
    for (int i = 0; i < HALF_COLUMNS / 8; i++)
      bias[i] = *(const float2*)(p.key_value_bias + min(first_column() + at.warp / 4 * HALF_COLUMNS + i * 8 + at.quad * 2, KEY_VALUE_COLUMNS - 2));
    wait_for_bytes(arrival(), 0);
    // What lies where the input goes was read by all.
    block_sync();
#pragma unroll 1
    for (int token = row_tile * 64; token < total(); token += KV_ROWS * 64) {
      float sums[HALF_COLUMNS / 8][4] = {};
      await(REST, [&] {
        ask(token);
        return largest();
      });
#pragma unroll
      for (int step = 0; step < CONTEXT_STEPS; step++)
#pragma unroll
        for (int i = 0; i < 2; i++) *(uint4*)staged(input(step), (at.thread >> 3) + i * 32, at.thread & 7) = rows[step][i];
      fence_copies();
      block_sync();
#pragma unroll
      for (int step = 0; step < CONTEXT_STEPS; step++)
        multiply_stage(sums, input(step), weights(step) + at.warp / 4 * HALF_COLUMNS * 128);
      multiplied(sums);
      block_sync();
      keep(token, sums, bias);
    }
  }

  // Laid out in shared memory first, so that memory is written 16 bytes at a time, sixteen columns side by side. The rows that do not exist
  // are written as far as the buffer goes.
  DEVICE void keep(int token, const float (&sums)[HALF_COLUMNS / 8][4], const float2 (&bias)[HALF_COLUMNS / 8]) {
    float* lines = (float*)shared;
    int padded = divide_up(total(), 32) * 32;
#pragma unroll
    for (int i = 0; i < HALF_COLUMNS / 8; i++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        *(float2*)(lines + (at.warp % 4 * 16 + at.group + half * 8) * KV_LINE + at.warp / 4 * HALF_COLUMNS + i * 8 + at.quad * 2) =
            make_float2(sums[i][half * 2] + bias[i].x, sums[i][half * 2 + 1] + bias[i].y);
    block_sync();
#pragma unroll 2
    for (int item = at.thread; item < KV_COLUMNS * 8; item += THREADS) {
      int inside = item / 128 * 16, column = first_column() + inside, part = column / HIDDEN, start = part / 2 * padded * HIDDEN;
      if (column >= KEY_VALUE_COLUMNS) break;
      column -= part * HIDDEN;
      bool values = part % 2;
      // Eight columns of a token, or eight tokens of a column.
      int down = values ? (item % 128 / 32 * 2 + item % 2) * 8 : item % 128 / 2, across = values ? item % 32 / 2 : item % 2 * 8;
      if (token + down >= padded) continue;
      const float* from = lines + down * KV_LINE + inside + across;
      int stride = values ? KV_LINE : 1;
      float x[8];
#pragma unroll
      for (int i = 0; i < 8; i++) x[i] = from[i * stride];
      Element* to = values ? exchange.values + start + placed_value(token + down, column + across) : exchange.keys + start + placed(token + down, column + across, HIDDEN);
      publish_eight(to, make_uint4(pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7])));
    }
    block_sync();
  }
};
