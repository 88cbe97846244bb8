// The keys and values that all layers read from the context, [LAYERS, 2, padded * HIDDEN], placed as fragments are read.

DEVICE int context_place(int token, int column) { return token * HIDDEN + column; }

constexpr int CONTEXT_STEPS = HIDDEN / 64, KEY_VALUE_COLUMNS = 2 * LAYERS * HIDDEN;
// A block makes tiles of 128 tokens and KV_COLUMNS columns, four warps 64 tokens each. In memory the weights lie as they do in a stage, [KV_TILES,
// steps, KV_COLUMNS, 64], chunks swizzled by `staged`, with zeros behind the last column.
constexpr int KV_TILES = divide_up(KEY_VALUE_COLUMNS, KV_COLUMNS), KV_WEIGHT_BYTES = KV_COLUMNS * 128, KV_LEAD = KV_STAGES - 1;

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

  DEVICE void load_weights(int step) const {
    if (at.thread != FETCHER || task_of(step) >= tasks()) return;
    const Element* from = p.key_value_weights + ((size_t)(task_of(step) % KV_TILES) * CONTEXT_STEPS + step % CONTEXT_STEPS) * (KV_WEIGHT_BYTES / 2);
    expect_bytes(arrival(step), KV_WEIGHT_BYTES);
    copy_bulk(stage(step) + 128 * 128, from, KV_WEIGHT_BYTES, arrival(step));
  }

  // Biases of the columns of every second tile.
  DEVICE float* bias(int step) const { return (float*)(shared + KV_STAGES * KV_STAGE_BYTES) + step / CONTEXT_STEPS % 2 * KV_COLUMNS; }

  // Tokens that do not exist are the last one again.
  DEVICE void load_tokens(int step) const {
    int task = task_of(step), row = at.thread >> 3, chunk = at.thread & 7;
    if (task < tasks()) {
      int token = task / KV_TILES * 128 + row;
      const Element* from = exchange.context + context_place(0, step % CONTEXT_STEPS * 64 + chunk * 8);
      unsigned char* to = stage(step) + swizzled_at((row & 16) + side_by_side(row & 15), chunk);
#pragma unroll
      for (int i = 0; i < 4; i++) copy_async(to + i * 4096, from + min(token + i * 32, total() - 1) * HIDDEN, true);
      int column = task % KV_TILES * KV_COLUMNS + at.thread * 4;
      if (step % CONTEXT_STEPS == 0 && at.thread < KV_COLUMNS / 4 && column < KEY_VALUE_COLUMNS) copy_async(bias(step) + at.thread * 4, p.key_value_bias + column, true);
    }
    copy_commit();
  }

  // What need not wait for the context.
  DEVICE void begin() const {
#pragma unroll 1
    for (int step = 0; step < KV_LEAD; step++) load_weights(step);
  }

  DEVICE void run() const {
#pragma unroll 1
    for (int step = 0; step < KV_LEAD; step++) load_tokens(step);
    int step = 0;
#pragma unroll 1
    for (int task = block_index(); task < tasks(); task += GRID) {
      float sums[KV_PARTS][KV_WIDTH / 8][4];
#pragma unroll 1
      for (int inside = 0; inside < CONTEXT_STEPS; inside++, step++) {
        copy_wait<KV_LEAD - 1>();
        fence_copies();
        block_sync();
        wait_for_arrival(arrival(step), step / KV_STAGES & 1);
#pragma unroll
        for (int part = 0; part < KV_PARTS; part++)
          multiply_stage(sums[part], stage(step) + at.warp / 4 * 64 * 128, stage(step) + (128 + part * KV_WIDTH) * 128, inside > 0);
        multiplied_before();
        // The step before this was multiplied by all: its stage is free.
        block_sync();
        load_weights(step + KV_LEAD);
        load_tokens(step + KV_LEAD);
      }
      int first_column = task % KV_TILES * KV_COLUMNS;
#pragma unroll
      for (int part = 0; part < KV_PARTS; part++) multiplied(sums[part]);
#pragma unroll
      for (int part = 0; part < KV_PARTS; part++) keep(task / KV_TILES * 128 + at.warp * 16, first_column + part * KV_WIDTH, sums[part], bias(step - 1) + part * KV_WIDTH);
    }
    copy_wait<0>();
  }

  // Sixteen tokens, in the order of `side_by_side`, of which a thread has four columns of two keys, or four values of two columns: both lie in
  // memory 64 elements apart. The rows that do not exist are written as far as the buffer goes.
  DEVICE void keep(int token, int first_column, const float (&sums)[KV_WIDTH / 8][4], const float* biases) const {
    int padded = divide_up(total(), 32) * 32;
    if (token >= padded) return;
    Element* own = exchange.keys_values + ((at.group >> 1) * 4 + (at.group & 1)) * 32 + at.quad * 4;
#pragma unroll
    for (int unit = 0; unit < KV_WIDTH / 16; unit++) {
      int column = first_column + unit * 16, part = column / HIDDEN;
      if (column >= KEY_VALUE_COLUMNS) break;
      float4 bias = *(const float4*)(biases + unit * 16 + at.quad * 4);
      column -= part * HIDDEN;
      bool values = part % 2;
      Element* to = own + part * padded * HIDDEN + (values ? placed_value(token, column) : placed(token, column, HIDDEN));
      uint32_t words[2][2];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float *left = sums[unit * 2] + half * 2, *right = sums[unit * 2 + 1] + half * 2;
        words[half][0] = pack(left[0] + bias.x, left[1] + bias.y);
        words[half][1] = pack(right[0] + bias.z, right[1] + bias.w);
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
        uint2 down = {transposed(words[0][i]), transposed(words[1][i])};
        publish_four(to + i * 64, uint2{values ? down.x : words[i][0], values ? down.y : words[i][1]});
      }
    }
  }
};
