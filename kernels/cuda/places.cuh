// What the kernels do alike: where elements lie in what blocks exchange, how they wait for it, and sums over lanes.
//
// Places are unsigned: dividing what may be negative takes twice the instructions.

// Where an element lies in what blocks exchange and in keys, [rows / 16, width / 32, 16, 32]: a fragment is one run of 512 bytes.
DEVICE uint32_t placed(uint32_t row, uint32_t column, uint32_t width) { return (row / 16 * (width / 32) + column / 32) * 512 + row % 16 * 32 + column % 32; }

// The same for a product's input [rows / 16, width / 16, lanes, 8]: a lane's rows r and r + 8, two columns of either in turn, four columns a
// lane, which is the order of the registers that multiply them.
DEVICE uint32_t placed_input(uint32_t row, uint32_t column, uint32_t width) {
  return (row / 16 * (width / 16) + column / 16) * 256 + (row % 8 * 4 + column % 16 / 4) * 8 + column % 4 / 2 * 4 + row % 16 / 8 * 2 + column % 2;
}

// The same for values, which are read along the keys: [keys / 32, HIDDEN, 32].
DEVICE uint32_t placed_value(uint32_t key, uint32_t column) { return (key / 32 * HIDDEN + column) * 32 + key % 32; }

// Of sixteen rows or columns that a product makes, where number `i` stands, so that a thread has four side by side: in a weight's rows, for the
// columns of two products of eight, and among tokens, for the rows `group` and `group` + 8 of two lanes.
DEVICE uint32_t side_by_side(uint32_t i) { return ((i >> 1 & 1) << 3) + (i >> 2 << 1) + (i & 1); }

// The row of the context that a token has, whose keys and values a thread then has side by side.
DEVICE uint32_t token_row(uint32_t token) { return token / 16 * 16 + side_by_side(token % 16); }

struct Place {
  int thread, warp, group, quad;  // group: lane / 4, a row or column of a fragment; quad: lane % 4, which eight of every 32 places
  int rows, share;                // the block's first query row, and which of GROUPS it is, more where it is none
};

// UNWRITTEN is the largest of numbers, so that the largest word says whether any is unwritten.
DEVICE uint32_t largest_word(uint4 v) { return max(max(v.x, v.y), max(v.z, v.w)); }

// Ask for what has not come yet.
DEVICE void load_missing(uint4& v, const void* from) {
  if (largest_word(v) == UNWRITTEN) v = load_fresh(from);
}

// Between two looks at what others write; the sum is zero.
DEVICE void rest_at_work() { relax(REST + multiply_nothing<1>()); }

// Ask for what others write until all lanes of the warp have it: `load` asks, and returns the largest word. Not before so many cycles are over
// in which it can hardly come: what was looked at before it is written comes later by more than a look takes.
template <typename Load>
DEVICE void await(int cycles, Load load) {
  pause(cycles);
  while (!warp_all(load() != UNWRITTEN)) relax(REST);
}

// The same between products of the chain, the tensor cores kept at work.
template <typename Load>
DEVICE void await_at_work(int cycles, Load load) {
  pause_at_work(cycles);
  while (!warp_all(load() != UNWRITTEN)) rest_at_work();
}

DEVICE float quad_sum(float x) {
  x += warp_exchange(x, 1);
  return x + warp_exchange(x, 2);
}

DEVICE float2 half_warp_sum(float2 x) {
#pragma unroll
  for (int mask = 1; mask < 16; mask *= 2) x.x += warp_exchange(x.x, mask), x.y += warp_exchange(x.y, mask);
  return x;
}

// Add eight elements, and their squares.
DEVICE void add_squares(float2& sum, uint4 chunk) {
  const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float2 pair = unpack(words[i]);
    sum.x += pair.x + pair.y;
    sum.y += pair.x * pair.x + pair.y * pair.y;
  }
}

// Mean and 1 / deviation of numbers, of their sum, that of their squares, and 1 / how many they are.
DEVICE float2 mean_and_scale(float2 sum, float one) {
  float mean = sum.x * one, variance = sum.y * one - mean * mean;
  // Not fmaxf, which would turn NaN into a number.
  return make_float2(mean, rsqrtf((variance < 0 ? 0 : variance) + EPS));
}

// a: rows r and r + 8, b: column; 16 places of the contracted axis.
DEVICE void multiply_16(float (&sums)[4], uint4 a, uint32_t b0, uint32_t b1) { multiply_add(sums, a.x, a.y, a.z, a.w, b0, b1); }
