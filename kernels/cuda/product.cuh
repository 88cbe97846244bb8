// A product of the chain: a block's columns of its 16 rows of x W, the contracted axis shared by its warps. What these find is added as an
// attention's is.

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
  await_at_work(INPUT_AHEAD, [&] {
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) load_missing(a[i][half], from + half * 256 + i * WARPS * 512);
    if (first_time) meanwhile();
    first_time = false;
    if (BLOCKS > 4) warp_sync();
    // A long input takes as long as the tensor cores may rest.
    uint32_t largest = BLOCKS > 4 ? multiply_nothing<10>() : 0;
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) largest = max(largest, max(largest_word(a[i][0]), largest_word(a[i][1])));
    return largest;
  });
}

// A warp's part of COUNT units of columns, over its slice of the contracted axis: of units from BEGIN on, with which `region` begins. A block may have a unit
// less; the region then holds a neighbour's, whose result nobody reads; a place too many of the axis meets zeros. Neither needs a branch.
template <int DIM, int BEGIN, int COUNT, int UNITS, int BLOCKS>
DEVICE void multiply_rows(const Place& at, const uint4 (&a)[BLOCKS][2], const unsigned char* region, float (&result)[UNITS][4]) {
#pragma unroll
  for (int i = 0; i < BLOCKS; i++) {
    const uint4* weights = (const uint4*)region + min(at.warp + i * WARPS, DIM / 32 - 1) * 32 + (at.thread & 31);
#pragma unroll
    for (int unit = 0; unit < COUNT; unit++) {
      uint4 b = weights[unit * DIM];
      multiply_16(result[BEGIN + unit], a[i][0], b.x, b.y);
      multiply_16(result[BEGIN + unit], a[i][1], b.z, b.w);
    }
  }
}

// Leave the warps' slices as [UNITS, WARPS, lanes].
template <int UNITS>
DEVICE void keep_slices(const Place& at, const float (&result)[UNITS][4], uint2* slices) {
#pragma unroll
  for (int unit = 0; unit < UNITS; unit++) slices[(unit * WARPS + at.warp) * 32 + (at.thread & 31)] = slice_of(result[unit]);
}

// The sum of a unit's slices, in two sums, so that few products wait for each other.
DEVICE void add_slices(const Place& at, const uint2* slices, int unit, float (&value)[4]) {
  const uint2* from = slices + unit * WARPS * 32 + (at.thread & 31);
  float sums[2][4] = {};
#pragma unroll
  for (int slice = 0; slice < WARPS; slice += 2) add_two(at, sums[slice / 2 & 1], from + slice * 32);
#pragma unroll
  for (int i = 0; i < 4; i++) value[i] = sums[0][i] + sums[1][i];
}
