// Attention of a block's 16 rows in one head, as a step of the chain.

// The warp's block of the queries' own, from what a layer exchanges. Of keys that memory does not have, others that it has.
DEVICE void load_own(KeyBlock& own, const Place& at, const Element* buffers, int head) {
  int sixteen = min(at.warp * 2 + (at.group >> 2), ROWS / 16 - 1) * 16, column = head * HEAD;
  const Element* keys = buffers + QUERY_KEYS + placed(sixteen + first_key(at), HIDDEN + column + at.quad * 8, 2 * HIDDEN);
  const Element* values = buffers + VALUES + placed_value(min(at.warp * 32 + at.quad * 8, ROWS - 8), column + at.group);
  own.load(keys, values, [](uint4& to, const void* from) { to = load_fresh(from); });
}

// The warp's block of the context's in the next units of the ring, once they have come.
DEVICE void load_context(KeyBlock& own, const Place& at, const Stream& stream) {
  constexpr int BLOCKS = UNIT_KEYS / 32;
  Position unit = stream.position.after(at.warp / BLOCKS);
  wait_for_arrival(stream.arrival(unit), unit.parity);
  const Element* keys = (const Element*)stream.slot(unit) + at.warp % BLOCKS * (32 * HEAD);
  const Element* values = keys + UNIT_KEYS * HEAD + placed_value(at.quad * 8, at.group);
  keys += placed((at.group >> 2) * 16 + first_key(at), at.quad * 8, HEAD);
  own.load(keys, values, [](uint4& to, const void* from) { to = *(const uint4*)from; });
}

// Merge what `warps` warps found and write it as a product's input [ROWS, HIDDEN]. All warps have read what the product before this left.
DEVICE void merge_warps(const Place& at, unsigned char* shared, const Mixture& found, int warps, int first_column, Element* output) {
  float2* heads = (float2*)(shared + SUMS_AT);
  float* mixtures = (float*)(shared + SLICES_AT);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int row = at.warp * 16 + at.group + half * 8;
    float total = quad_sum(found.total[half]);
    if (at.quad == 0) heads[row] = make_float2(found.largest[half], total);
#pragma unroll
    for (int tile = 0; tile < 8; tile++)
      *(float2*)(mixtures + row * MIXTURE_LINE + tile * 8 + at.quad * 2) = make_float2(found.mixed[tile][half * 2], found.mixed[tile][half * 2 + 1]);
  }
  block_sync();
  // It is done long before what follows, which takes as long as the tensor cores may rest.
  uint32_t nothing = multiply_nothing<1>();
  // A thread has two columns of two rows.
  int column = (at.thread & 31) * 2;
  uint32_t pairs[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int row = at.warp + half * 8;
    float peak = EMPTY, sum = 0;
    float2 merged = {0, 0};
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) if (warp < warps) peak = fmaxf(peak, heads[warp * 16 + row].x);
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
      if (warp >= warps) break;
      float2 part = heads[warp * 16 + row], x = *(const float2*)(mixtures + (warp * 16 + row) * MIXTURE_LINE + column);
      float share = power_of_two(part.x - peak);
      sum += share * part.y;
      merged.x += share * x.x, merged.y += share * x.y;
    }
    float scale = sum == 0 ? 0 : reciprocal(sum);
    pairs[half] = pack(merged.x * scale, merged.y * scale);
  }
  publish_four(output + placed_input(at.rows + at.warp, first_column + column, HIDDEN), uint2{pairs[0] | nothing, pairs[1]});
}

// The block's query [16, HEAD], which lies as `placed`, once it is written. A thread brings four columns of a row.
DEVICE void take_query(const Place& at, unsigned char* shared, const Element* query, int column, int width, int ahead, uint4 (&q)[2][2]) {
  int row = at.thread >> 4, four = (at.thread & 15) * 4;
  uint2 part;
  await_at_work(ahead, [&] {
    part = load_pair(query + placed(at.rows + row, column + four, width));
    return max(part.x, part.y);
  });
  place_query(at, shared + QUERY_AT, row, four, part, q);
}

// Units of the ring that a round of an attention over the context takes, and warps that have keys of them. Among the queries there is one round.
constexpr int ROUND_UNITS = smaller(WARPS * 32 / UNIT_KEYS, SLOTS), ROUND_WARPS = ROUND_UNITS * UNIT_KEYS / 32;
static_assert(QUERIES <= WARPS * 32, "a round of queries");

// Attention in a head over the first `count` keys, a warp 32 of them at a time: of the queries, which lie in a layer's buffers, or of the context, which
// come through the ring. Asks for nothing that others are about to write for `ahead` cycles.
DEVICE void attend(const Place& at, unsigned char* shared, Stream& stream, const Element* buffers, const Element* query, bool self, int count,
                   Element* output, int ahead) {
  Mixture found;
  // Written on every path: else they take registers through the whole chain.
  uint4 q[2][2] = {};
  KeyBlock own = {};
  int blocks = divide_up(count, 32), warps = self ? WARPS : ROUND_WARPS, first = 0;
  if (self) pause_at_work(ahead);
#pragma unroll 1
  for (bool asked = false; first < blocks || !asked; asked = true) {
    bool takes_part = at.warp < min(warps, blocks - first);
    if (takes_part) {
      if (self) load_own(own, at, buffers, at.share);
      else load_context(own, at, stream);
    }
    // The first keys and values are on their way while the query is waited for, for which a warp without keys takes part. Then all warps have theirs.
    if (!asked) take_query(at, shared, query, at.share * HEAD, self ? 2 * HIDDEN : HIDDEN, self ? 0 : ahead, q);
    else if (!self) block_sync();
    if (!self) stream.advance(at, min(ROUND_UNITS, divide_up(blocks - first, UNIT_KEYS / 32)));
    if (takes_part) {
      if (self && !warp_all(own.largest() != UNWRITTEN)) {
        rest_at_work();
        continue;
      }
      found.add(at, q, own, (first + at.warp) * 32, count);
    }
    first += warps;
  }
  merge_warps(at, shared, found, min(WARPS, max(blocks, 1)), at.share * HEAD, output);
}
