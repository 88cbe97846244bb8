// How keys and values of all layers are made of the context.

// A block makes tiles of 128 tokens and KV_COLUMNS columns, four warps 64 tokens each. In memory the weights lie as they do in a stage, [KV_TILES,
// steps, KV_COLUMNS, 64], chunks swizzled by `staged`, with zeros behind the last column; and so does the context, [tiles, steps, 128, 64], each 16
// tokens in the order of `side_by_side`, with anything behind the last 32 of which one exists.
constexpr int KV_TILES = divide_up(KEY_VALUE_COLUMNS, KV_COLUMNS), KV_TOKEN_BYTES = KV_STAGE_BYTES - KV_WEIGHT_BYTES;

DEVICE uint32_t context_place(uint32_t token, uint32_t column) {
  return (token / 128 * CONTEXT_STEPS + column / 64) * (KV_TOKEN_BYTES / 2) + swizzled_at(token_row(token) % 128, column % 64 / 8) / 2 + column % 8;
}

// In units [LAYERS, HEADS, units].
DEVICE Element* kept_place(Element* first, int padded, int part, int token, int column) {
  // Without signs, whose division is longer.
  uint32_t head = (uint32_t)part / 2 * HEADS + (uint32_t)column / HEAD, unit = head * key_units(padded) + (uint32_t)token / UNIT_KEYS;
  int inside = (uint32_t)token % UNIT_KEYS, own = (uint32_t)column % HEAD;
  int place = part & 1 ? UNIT_KEYS * HEAD + inside / 32 * (32 * HEAD) + placed_value(inside % 32, own) : placed(inside, own, HEAD);
  return first + unit * (KEYS_BYTES / 2) + place;
}

struct KeysValues {
  const Parameters& p;
  const Place& at;
  unsigned char* shared;
  const Exchange& exchange;

  DEVICE int total() const { return p.vlm_tokens + p.dino_tokens; }
  DEVICE int tasks() const { return divide_up(total(), 128) * KV_TILES; }
  // Of the steps of this block's tiles, one after the other.
  DEVICE int task_of(int step) const { return block_index() + step / CONTEXT_STEPS * GRID; }
  DEVICE unsigned char* stage(int step) const { return shared + step % KV_STAGES * KV_STAGE_BYTES; }
  DEVICE uint64_t* arrival(int step) const { return (uint64_t*)(shared + ARRIVALS_AT) + SLOTS + step % KV_STAGES; }
  DEVICE uint64_t* freed(int step) const { return arrival(step) + KV_STAGES; }
  DEVICE static int parity(int step) { return step / KV_STAGES & 1; }

  // The first to be asked for of a step's bytes.
  DEVICE void ask_for_weights(int step) const {
    const Element* from = p.key_value_weights + ((size_t)(task_of(step) % KV_TILES) * CONTEXT_STEPS + step % CONTEXT_STEPS) * (KV_WEIGHT_BYTES / 2);
    expect_bytes(arrival(step), KV_STAGE_BYTES);
    copy_bulk(stage(step) + KV_TOKEN_BYTES, from, KV_WEIGHT_BYTES, arrival(step));
  }

  DEVICE void ask_for_tokens(int step) const {
    const Element* from = exchange.context + (task_of(step) / KV_TILES * CONTEXT_STEPS + step % CONTEXT_STEPS) * (KV_TOKEN_BYTES / 2);
    copy_bulk(stage(step), from, KV_TOKEN_BYTES, arrival(step));
  }

  // What need not wait for the context, of steps `step` to `end` - 1.
  DEVICE void begin(int step, int end) const {
#pragma unroll 1
    for (; step < end && task_of(step) < tasks(); step++) ask_for_weights(step);
  }

  // The warp has multiplied a step. Once all have, the one that takes its place is asked for.
  DEVICE void leave(int step) const {
    if ((at.thread & 31) == 0) arrive(freed(step));
    int next = step + KV_STAGES;
    if (at.thread == FETCHER && task_of(next) < tasks()) {
      wait_for_arrival(freed(step), parity(step));
      ask_for_weights(next);
      ask_for_tokens(next);
    }
    // The warp multiplies together.
    warp_sync();
  }

  // FETCHER has seen that the context is there.
  DEVICE void run() const {
    if (at.thread == FETCHER) {
      fence_copies_from_others();
#pragma unroll 1
      for (int step = 0; step < KV_STAGES && task_of(step) < tasks(); step++) ask_for_tokens(step);
    }
    warp_sync();
    int step = 0;
#pragma unroll 1
    for (int task = block_index(); task < tasks(); task += GRID) {
      int first_column = task % KV_TILES * KV_COLUMNS;
      float sums[KV_PARTS][KV_WIDTH / 8][4];
#pragma unroll
      for (int part = 0; part < KV_PARTS; part++) begin_sums(first_column + part * KV_WIDTH, sums[part]);
#pragma unroll 1
      for (int inside = 0; inside < CONTEXT_STEPS; inside++, step++) {
        wait_for_arrival(arrival(step), parity(step));
#pragma unroll
        for (int part = 0; part < KV_PARTS; part++)
          multiply_stage(sums[part], stage(step) + at.warp / 4 * 64 * 128, stage(step) + KV_TOKEN_BYTES + part * KV_WIDTH * 128, true);
        multiplied_before<KV_PARTS>();
        if (step > 0) leave(step - 1);
      }
#pragma unroll
      for (int part = 0; part < KV_PARTS; part++) multiplied(sums[part]);
#pragma unroll
      for (int part = 0; part < KV_PARTS; part++)
        keep_keys_values(at, exchange, total(), task / KV_TILES * 128 + at.warp * 16, first_column + part * KV_WIDTH, sums[part]);
    }
  }

  // A product's sums begin with its biases.
  DEVICE void begin_sums(int first_column, float (&sums)[KV_WIDTH / 8][4]) const {
#pragma unroll
    for (int unit = 0; unit < KV_WIDTH / 16; unit++) {
      float4 bias = *(const float4*)(p.key_value_bias + min(first_column + unit * 16 + at.quad * 4, KEY_VALUE_COLUMNS - 4));
      float(&left)[4] = sums[unit * 2], (&right)[4] = sums[unit * 2 + 1];
      left[0] = left[2] = bias.x, left[1] = left[3] = bias.y, right[0] = right[2] = bias.z, right[1] = right[3] = bias.w;
    }
  }
};
