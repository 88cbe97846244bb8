// How keys and values of all layers are made of the context.

DEVICE uint32_t context_place(uint32_t token, uint32_t column) { return placed_input(token_row(token), column, HIDDEN); }

// [LAYERS, 2, padded * HIDDEN].
DEVICE Element* kept_place(Element* first, int padded, int part, int token, int column) {
  return first + part * padded * HIDDEN + (part % 2 ? placed_value(token, column) : placed(token, column, HIDDEN));
}

// A block keeps the weights of its columns. Each four warps take 64 tokens after the other, straight into registers, so that one multiplies while the
// other waits for its tokens or writes its results. In memory the weights lie as they do in a block, [KV_TILES, steps, KV_COLUMNS, 64], chunks
// swizzled by `staged`, with zeros behind the last column; rows, and of every 16 places of the contracted axis, in the order of `side_by_side`.
constexpr int KV_STEP_BYTES = KV_COLUMNS * 128, KV_TILES = divide_up(KEY_VALUE_COLUMNS, KV_COLUMNS), KV_ROWS = GRID / KV_TILES;

static_assert(KV_ROWS > 0, "blocks for keys and values");

struct KeysValues {
  const Parameters& p;
  const Place& at;
  unsigned char* shared;
  const Exchange& exchange;
  uint4 rows[HIDDEN / 16];  // the thread's part of 64 tokens

  DEVICE int total() const { return p.vlm_tokens + p.dino_tokens; }
  // The last blocks have the least to do before.
  DEVICE int column_tile() const { return (GRID - 1 - block_index()) % KV_TILES; }
  DEVICE int row_tile() const { return (GRID - 1 - block_index()) / KV_TILES; }
  DEVICE int first_column() const { return column_tile() * KV_COLUMNS; }
  DEVICE uint64_t* arrival() const { return (uint64_t*)(shared + ARRIVALS_AT) + 2; }
  DEVICE unsigned char* weights(int step) const { return shared + KV_WEIGHTS_AT + step * KV_STEP_BYTES; }

  // Some blocks have no tokens, and ask for no weights: nobody would wait for them.
  DEVICE bool takes_part() const { return row_tile() < KV_ROWS && row_tile() * 64 < total(); }

  // The weights need not wait for the context, and those from this step on not even for the projections, where these leave room.
  DEVICE int late() const {
    int team = block_index() / ACROSS, stages = min(p.first_steps[team + 1] - p.first_steps[team], STAGES);
    return min(divide_up(max(stages * STAGE_BYTES - KV_WEIGHTS_AT, 0), KV_STEP_BYTES), CONTEXT_STEPS);
  }

  DEVICE void load_weights(int first, int last) {
    if (at.thread != FETCHER || first == last || !takes_part()) return;
    if (last == CONTEXT_STEPS) expect_bytes(arrival(), CONTEXT_STEPS * KV_STEP_BYTES);
    const Element* from = p.key_value_weights + (size_t)(column_tile() * CONTEXT_STEPS + first) * (KV_STEP_BYTES / 2);
    copy_bulk(weights(first), from, (last - first) * KV_STEP_BYTES, arrival());
  }

  DEVICE void run() {
    if (!takes_part()) return;
    int ahead = CONTEXT_AHEAD;
#pragma unroll 1
    for (int token = (row_tile() + at.warp / 4 * KV_ROWS) * 64; token < total(); token += 2 * KV_ROWS * 64) {
      // A product's sums begin with its biases.
      float sums[KV_COLUMNS / 8][4];
#pragma unroll
      for (int tile = 0; tile < KV_COLUMNS / 8; tile++) {
        float2 bias = *(const float2*)(p.key_value_bias + min(first_column() + tile / 2 * 16 + at.quad * 4 + tile % 2 * 2, KEY_VALUE_COLUMNS - 2));
        sums[tile][0] = sums[tile][2] = bias.x, sums[tile][1] = sums[tile][3] = bias.y;
      }
      bring(token + at.warp % 4 * 16, ahead);
      if (ahead) wait_for_arrival(arrival(), 0);
      ahead = 0;
      begin_multiplying();
#pragma unroll
      for (int k = 0; k < HIDDEN / 16; k++) multiply_fragment(sums, rows[k], weights(k / 4) + k % 4 * 32);
      end_multiplying();
      multiplied(sums);
      keep_keys_values(at, exchange, total(), token + at.warp % 4 * 16, first_column(), sums);
    }
  }

  // Sixteen rows; those behind the buffer are the last ones again.
  DEVICE void bring(int token, int ahead) {
    const Element* from = settled(exchange.context + min(token / 16, divide_up(total(), 32) * 2 - 1) * (16 * HIDDEN) + (at.thread & 31) * 8);
#pragma unroll
    for (int k = 0; k < HIDDEN / 16; k++) rows[k] = make_uint4(UNWRITTEN, UNWRITTEN, UNWRITTEN, UNWRITTEN);
    await(ahead, [&] {
      uint32_t largest = 0;
#pragma unroll
      for (int k = 0; k < HIDDEN / 16; k++) load_missing(rows[k], from + k * 256);
#pragma unroll
      for (int k = 0; k < HIDDEN / 16; k++) largest = max(largest, largest_word(rows[k]));
      return largest;
    });
  }
};
