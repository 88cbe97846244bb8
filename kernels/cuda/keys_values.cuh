// The keys and values that all layers read from the context, [LAYERS, 2, padded * HIDDEN], placed as fragments are read.

constexpr int CONTEXT_STEPS = HIDDEN / 64, KEY_VALUE_COLUMNS = 2 * LAYERS * HIDDEN;
// A block keeps the weights of its columns, half of them for each four warps, and takes 64 tokens after the other. In memory the weights lie
// as they do in a block, [KV_TILES, steps, KV_COLUMNS, 64], chunks swizzled by `staged`, with zeros behind the last column.
constexpr int KV_STEP_BYTES = KV_COLUMNS * 128, KV_LATE = smaller(CONTEXT_STEPS, divide_up(larger(STAGES * STAGE_BYTES - KV_WEIGHTS_AT, 0), KV_STEP_BYTES));
constexpr int HALF_COLUMNS = KV_COLUMNS / 2, KV_TILES = divide_up(KEY_VALUE_COLUMNS, KV_COLUMNS), KV_ROWS = GRID / KV_TILES;

static_assert(KV_ROWS > 0, "blocks for keys and values");

struct KeysValues {
  const Parameters& p;
  const Place& at;
  unsigned char* shared;
  const Exchange& exchange;
  uint4 rows[CONTEXT_STEPS][2];  // the thread's part of a tile's tokens

  DEVICE int total() const { return p.vlm_tokens + p.dino_tokens; }
  DEVICE int first_column() const { return block_index() % KV_TILES * KV_COLUMNS + at.warp / 4 * HALF_COLUMNS; }
  DEVICE uint64_t* arrival() const { return (uint64_t*)(shared + ARRIVALS_AT) + 2; }
  DEVICE unsigned char* input(int step) const { return shared + step * 64 * 128; }
  DEVICE unsigned char* weights(int step) const { return shared + KV_WEIGHTS_AT + step * KV_STEP_BYTES; }

  // Some blocks have no tokens, and ask for no weights: nobody would wait for them.
  DEVICE bool takes_part() const { return block_index() / KV_TILES < KV_ROWS && block_index() / KV_TILES * 64 < total(); }

  // Which need not wait for the context, and those from step KV_LATE on not even for the projections to leave their stages.
  DEVICE void load_weights(int first, int last) {
    if (at.thread != FETCHER || first == last || !takes_part()) return;
    if (last == CONTEXT_STEPS) expect_bytes(arrival(), CONTEXT_STEPS * KV_STEP_BYTES);
    const Element* from = p.key_value_weights + (size_t)(block_index() % KV_TILES * CONTEXT_STEPS + first) * (KV_STEP_BYTES / 2);
    copy_bulk(weights(first), from, (last - first) * KV_STEP_BYTES, arrival());
  }

  // Tokens that do not exist are the last one again.
  DEVICE void ask(int token, bool all) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const Element* from = settled(exchange.context + min(token + (at.thread >> 3) + i * 32, total() - 1) * HIDDEN + (at.thread & 7) * 8);
#pragma unroll
      for (int step = 0; step < CONTEXT_STEPS; step++)
        if (all || largest_word(rows[step][i]) == UNWRITTEN) rows[step][i] = load_fresh(from + step * 64);
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
    if (!takes_part()) return;
    float2 bias[HALF_COLUMNS / 8];
#pragma unroll
    for (int i = 0; i < HALF_COLUMNS / 8; i++)
      bias[i] = *(const float2*)(p.key_value_bias + min(first_column() + i / 2 * 16 + at.quad * 4 + i % 2 * 2, KEY_VALUE_COLUMNS - 2));
    int row = (at.thread >> 3 & 16) + side_by_side(at.thread >> 3 & 15);
    bool asked = false, all = true;
#pragma unroll 1
    for (int token = row_tile * 64; token < total(); token += KV_ROWS * 64) {
      await(token == row_tile * 64 ? CONTEXT_AHEAD : 0, [&] {
        if (!asked) ask(token, all);
        asked = all = false;
        return largest();
      });
      // The tile before was multiplied by all.
      block_sync();
#pragma unroll
      for (int step = 0; step < CONTEXT_STEPS; step++)
#pragma unroll
        for (int i = 0; i < 2; i++) *(uint4*)staged(input(step), row + i * 32, at.thread & 7) = rows[step][i];
      fence_copies();
      block_sync();
      if (token == row_tile * 64) wait_for_bytes(arrival(), 0);
      float sums[HALF_COLUMNS / 8][4];
#pragma unroll
      for (int step = 0; step < CONTEXT_STEPS; step++) multiply_stage(sums, input(step), weights(step) + at.warp / 4 * HALF_COLUMNS * 128, step > 0);
      // The next tile comes while this one is multiplied.
      asked = token + KV_ROWS * 64 < total();
      if (asked) ask(token + KV_ROWS * 64, true);
      multiplied(sums);
      keep(token + at.warp % 4 * 16, sums, bias);
    }
  }

  // Sixteen tokens, in the order of `side_by_side`, of which a thread has four columns of two keys, or four values of two columns: both lie in
  // memory 64 elements apart. The rows that do not exist are written as far as the buffer goes.
  DEVICE void keep(int token, const float (&sums)[HALF_COLUMNS / 8][4], const float2 (&bias)[HALF_COLUMNS / 8]) {
    int padded = divide_up(total(), 32) * 32;
    if (token >= padded) return;
    Element* own = exchange.keys_values + ((at.group >> 1) * 4 + (at.group & 1)) * 32 + at.quad * 4;
#pragma unroll
    for (int unit = 0; unit < HALF_COLUMNS / 16; unit++) {
      int column = first_column() + unit * 16, part = column / HIDDEN;
      if (column >= KEY_VALUE_COLUMNS) break;
      column -= part * HIDDEN;
      bool values = part % 2;
      Element* to = own + part * padded * HIDDEN + (values ? placed_value(token, column) : placed(token, column, HIDDEN));
      uint32_t words[2][2];
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const float* x = sums[unit * 2 + i] + half * 2;
          words[half][i] = pack(x[0] + bias[unit * 2 + i].x, x[1] + bias[unit * 2 + i].y);
        }
#pragma unroll
      for (int i = 0; i < 2; i++) {
        uint2 down = {transposed(words[0][i]), transposed(words[1][i])};
        publish_four(to + i * 64, uint2{values ? down.x : words[i][0], values ? down.y : words[i][1]});
      }
    }
  }
};
