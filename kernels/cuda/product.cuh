// A product of the chain: a block's columns of its 16 rows of x W, the contracted axis shared by its warps.

// The block's units of 8 columns.
template <int WIDTH>
struct Units {
  int first, last;
  DEVICE Units(const Place& at) : first(at.share * (WIDTH / 8) / GROUPS), last((at.share + 1) * (WIDTH / 8) / GROUPS) {}
};

// The block's 16 rows of x [ROWS, DIM] as fragments, once they are written; a warp has every eighth 32 places of the contracted axis, zeros where
// there are none. `meanwhile` is done while the first answer is on its way.
template <int DIM, int BLOCKS, typename Meanwhile>
DEVICE void take(const Place& at, const Element* x, uint4 (&a)[BLOCKS][2], Meanwhile meanwhile) {
  const Element* from = x + at.rows * DIM + at.warp * 512 + (at.thread & 31) * 8;
  bool first_time = true;
#pragma unroll
  for (int i = 0; i < BLOCKS; i++) {
    uint32_t word = at.warp + i * WARPS < DIM / 32 ? UNWRITTEN : 0;
    a[i][0] = a[i][1] = make_uint4(word, word, word, word);
  }
  await(INPUT_AHEAD, [&] {
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) load_missing(a[i][half], from + half * 256 + i * WARPS * 512);
    if (first_time) meanwhile();
    first_time = false;
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) largest = max(largest, max(largest_word(a[i][0]), largest_word(a[i][1])));
    return largest;
  });
}

// A warp's part of all units of columns, over its slice of the contracted axis. A block may have a unit less; the region then holds a
// neighbour's, whose result nobody reads; a place too many of the axis meets zeros. Neither needs a branch.
template <int DIM, int UNITS, int BLOCKS>
DEVICE void multiply_rows(const Place& at, const uint4 (&a)[BLOCKS][2], const unsigned char* region, float (&result)[UNITS][4]) {
#pragma unroll
  for (int i = 0; i < BLOCKS; i++) {
    const uint4* weights = (const uint4*)region + min(at.warp + i * WARPS, DIM / 32 - 1) * 32 + (at.thread & 31);
#pragma unroll
    for (int unit = 0; unit < UNITS; unit++) {
      uint4 b = weights[unit * DIM];
      multiply_16(result[unit], a[i][0], b.x, b.y);
      multiply_16(result[unit], a[i][1], b.z, b.w);
    }
  }
}

// Leave the warps' parts as [WARPS, 16, LINE].
template <int UNITS>
DEVICE void keep_rows(const Place& at, const float (&result)[UNITS][4], float* parts) {
  float* own = parts + (at.warp * 16 + at.group) * LINE + at.quad * 2;
#pragma unroll
  for (int unit = 0; unit < UNITS; unit++) {
    *(float2*)(own + unit * 8) = make_float2(result[unit][0], result[unit][1]);
    *(float2*)(own + 8 * LINE + unit * 8) = make_float2(result[unit][2], result[unit][3]);
  }
}
