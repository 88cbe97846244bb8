// Attention of a block's rows in one head, as a step of the chain.

// What a block keeps, [16, KEPT_LINE], for `scatter`.
DEVICE Element* kept_of(unsigned char* shared, int row, int column) { return (Element*)(shared + KEPT_AT) + row * KEPT_LINE + column; }

// Eight numbers side by side: the largest, and the sum.
DEVICE float largest_of(const float* numbers) {
  float4 a = *(const float4*)numbers, b = *(const float4*)(numbers + 4);
  return fmaxf(fmaxf(fmaxf(a.x, a.y), fmaxf(a.z, a.w)), fmaxf(fmaxf(b.x, b.y), fmaxf(b.z, b.w)));
}

DEVICE float sum_of(const float* numbers) {
  float4 a = *(const float4*)numbers, b = *(const float4*)(numbers + 4);
  return ((a.x + a.y) + (a.z + a.w)) + ((b.x + b.y) + (b.z + b.w));
}

// Merge what the warps found of their blocks of keys, rows `group` and `group` + 8 of each: largest score, sum and mixture. A warp finishes eight
// columns. Keeps and writes as `attend`.
DEVICE void merge_warps(const Place& at, unsigned char* shared, Mixture& found, int first_column, Element* parts, float* logs) {
  float(&largest)[2] = found.largest, (&total)[2] = found.total, (&mixed)[8][4] = found.mixed;
  // Of each row what the warps found, side by side.
  float *largest_scores = (float*)(shared + SUMS_AT), *sums = largest_scores + 16 * WARPS;
  uint2* slices = (uint2*)(shared + SLICES_AT);
#pragma unroll
  for (int half = 0; half < 2; half++)
    if (at.quad == 0) largest_scores[(at.group + half * 8) * WARPS + at.warp] = largest[half];
  // The product before this is not read any more, either.
  block_sync();
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float peak = largest_of(largest_scores + (at.group + half * 8) * WARPS), shrink = power_of_two(largest[half] - peak);
    largest[half] = peak, total[half] = quad_sum(total[half] * shrink);
    if (at.quad == 0) sums[(at.group + half * 8) * WARPS + at.warp] = total[half];
#pragma unroll
    for (int tile = 0; tile < 8; tile++) mixed[tile][half * 2] *= shrink, mixed[tile][half * 2 + 1] *= shrink;
  }
  keep_slices(at, mixed, slices);
  block_sync();
  float value[4], scale[2];
  add_slices(at, slices, at.warp, value);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    total[half] = sum_of(sums + (at.group + half * 8) * WARPS);
    scale[half] = total[half] == 0 ? 0 : reciprocal(total[half]);
  }
  int column = at.warp * 8 + at.quad * 2;
  uint2 pairs = {pack(value[0] * scale[0], value[1] * scale[0]), pack(value[2] * scale[1], value[3] * scale[1])};
  if (!parts) {
    *(uint32_t*)kept_of(shared, at.group, column) = pairs.x;
    *(uint32_t*)kept_of(shared, at.group + 8, column) = pairs.y;
    return;
  }
  publish_four(parts + placed_input(at.rows + at.group, first_column + column, HIDDEN), pairs);
  if (at.warp > 0 || at.quad > 0) return;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float log = total[half] == 0 ? EMPTY : largest[half] + logarithm_of_two(total[half]);
    publish(logs + (at.rows + at.group + half * 8) * HEADS * 4, log != log ? 0x7fffffffu : __float_as_uint(log));
  }
}

// The norm that a query still needs: of each row sums and sums of squares, a pair a block, [ROWS, GROUPS], null if it needs none; biases of the
// query's columns, and HIDDEN further on what the mean takes from them.
struct QueryNorm {
  const float2* row_sums;
  const float* columns;
};

// What a thread brings of the query for all warps, four columns of a row, and of that row's sums.
struct QueryPart {
  static constexpr int SUMS = divide_up(GROUPS, 16);
  int row, four;
  uint2 words, sums[SUMS];
  float4 bias, column_sums;

  DEVICE QueryPart(const Place& at, const QueryNorm& norm, int column) : row(at.thread >> 4), four((at.thread & 15) * 4), sums(), bias(), column_sums() {
    if (norm.row_sums) bias = *(const float4*)(norm.columns + column + four), column_sums = *(const float4*)(norm.columns + HIDDEN + column + four);
  }

  DEVICE void load(const Place& at, const Element* query, const QueryNorm& norm, int column, int width) {
    words = load_pair(query + placed(at.rows + row, column + four, width));
#pragma unroll
    for (int i = 0; i < SUMS; i++) {
      int share = i * 16 + (at.thread & 15);
      if (norm.row_sums && share < GROUPS) sums[i] = load_pair(norm.row_sums + (at.rows + row) * GROUPS + share);
    }
  }

  // UNWRITTEN where any of it is.
  DEVICE uint32_t largest() const {
    uint32_t largest = max(words.x, words.y);
#pragma unroll
    for (int i = 0; i < SUMS; i++) largest = max(largest, max(sums[i].x, sums[i].y));
    return largest;
  }

  DEVICE void normalise() {
    float2 sum = {0, 0};
#pragma unroll
    for (int i = 0; i < SUMS; i++) sum.x += __uint_as_float(sums[i].x), sum.y += __uint_as_float(sums[i].y);
    sum = half_warp_sum(sum);
    float2 statistics = mean_and_scale(sum, 1.0f / HIDDEN), low = unpack(words.x), high = unpack(words.y);
    auto finished = [&](float x, float sum, float bias) { return statistics.y * (x - statistics.x * sum) + bias; };
    words.x = pack(finished(low.x, column_sums.x, bias.x), finished(low.y, column_sums.y, bias.y));
    words.y = pack(finished(high.x, column_sums.z, bias.z), finished(high.y, column_sums.w, bias.w));
  }
};

// Keys and values of the head of HEAD columns from `column` on, `limit` of them in memory. Keys lie in rows of `width` and begin `key_column` columns further
// on; a query lies in rows as wide, from `column` on.
struct HeadKeys {
  const Element *keys, *values;
  int column, width, key_column, limit;

  // Where a lane's of a block of 32 lie; of those that memory does not have, others that it has.
  DEVICE const Element* key_of(const Place& at, int block) const {
    int tile = min(block * 2 + (at.group >> 2), limit / 16 - 1);
    return keys + placed(tile * 16 + first_key(at), key_column + column + at.quad * 8, width);
  }
  DEVICE const Element* value_of(const Place& at, int block) const { return values + placed_value(min(block * 32 + at.quad * 8, limit - 8), column + at.group); }
};

// Attention of the block's rows in a head, over blocks `first` to `last` - 1 of 32 keys, a warp a block at a time; `count` keys take part. Writes parts
// [ROWS, HIDDEN] and logs [ROWS, HEADS, 4], or, where parts are null, keeps [16, HEAD]. Asks for nothing for `ahead` cycles.
DEVICE void attend(const Place& at, unsigned char* shared, const Element* query, const QueryNorm& norm, const HeadKeys& from, int first, int last, int count,
                   Element* parts, float* logs, int ahead) {
  Mixture found;
  KeyBlock own;
  QueryPart part(at, norm, from.column);
  last = min(last, divide_up(count, 32));
  int block = first + at.warp;
  const Element *key = from.key_of(at, block), *value = from.value_of(at, block);
  auto load_block = [&](bool exists) { own.load(key, value, [&](uint4& to, const void* place) { load_fresh_if(exists, to, place); }); };
  pause_at_work(ahead);
  // Keys and values are on their way while the query is waited for. A warp without keys takes part for the query.
  part.load(at, query, norm, from.column, from.width);
  load_block(block < last);
  while (!warp_all(part.largest() != UNWRITTEN)) {
    rest_at_work();
    part.load(at, query, norm, from.column, from.width);
  }
  if (norm.row_sums) part.normalise();
  uint4 q[2][2];
  place_query(at, shared + KEPT_AT, part.row, part.four, part.words, q);
#pragma unroll 1
  while (block < last) {
    int base = block * 32;
    while (!warp_all(own.largest() != UNWRITTEN)) {
      rest_at_work();
      load_block(true);
    }
    found.add(at, q, own, base, count);
    block += WARPS;
    key = from.key_of(at, block), value = from.value_of(at, block);
    load_block(block < last);
  }
  merge_warps(at, shared, found, from.column, parts, logs);
}

DEVICE uint32_t largest_log(uint4 v) { return max(SPLITS > 0 ? v.x : 0, max(SPLITS > 1 ? v.y : 0, SPLITS > 2 ? v.z : 0)); }

// The shares of the parts of an attention over the context, of the logs of their sums.
DEVICE void find_shares(uint4 log, float (&shares)[SPLITS]) {
  const uint32_t logs[4] = {log.x, log.y, log.z, log.w};
  float largest = EMPTY, total = 0;
#pragma unroll
  for (int s = 0; s < SPLITS; s++) largest = fmaxf(largest, __uint_as_float(logs[s]));
#pragma unroll
  for (int s = 0; s < SPLITS; s++) total += shares[s] = power_of_two(__uint_as_float(logs[s]) - largest);
  float scale = reciprocal(total);
#pragma unroll
  for (int s = 0; s < SPLITS; s++) shares[s] *= scale;
}

// Of the parts [SPLITS, ROWS, HIDDEN] of a head, with logs of their sums [ROWS, HEADS, 4], the blocks that made them merge every SPLITS-th four
// columns of two rows each, so that those who need the result do not all read all parts.
DEVICE void merge_parts(const Place& at, int split, int head, const Element* parts, const uint32_t* logs, Element* merged) {
  // Whole warps, which wait together.
  if (at.thread >= HEAD / 16 * 32) return;
  int place = (at.rows * HIDDEN + head * HEAD * 16) + at.thread * 8;
  bool own = at.thread % SPLITS == split;
  uint4 part[SPLITS], log[2];
  await_at_work(MERGE_AHEAD, [&] {
    uint32_t largest = 0;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      log[half] = load_fresh(logs + ((at.rows + at.group + half * 8) * HEADS + head) * 4);
      largest = max(largest, largest_log(log[half]));
    }
#pragma unroll
    for (int s = 0; s < SPLITS; s++) {
      part[s] = load_fresh(parts + s * ROWS * HIDDEN + place);
      largest = max(largest, largest_word(part[s]));
    }
    return own ? largest : 0;
  });
  float shares[2][SPLITS], sums[8] = {};
#pragma unroll
  for (int half = 0; half < 2; half++) find_shares(log[half], shares[half]);
#pragma unroll
  for (int s = 0; s < SPLITS; s++) {
    // Rows in turn.
    const uint32_t words[4] = {part[s].x, part[s].y, part[s].z, part[s].w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float2 pair = unpack(words[i]);
      sums[i * 2] += shares[i & 1][s] * pair.x, sums[i * 2 + 1] += shares[i & 1][s] * pair.y;
    }
  }
  if (own) publish_eight(merged + place, make_uint4(pack(sums[0], sums[1]), pack(sums[2], sums[3]), pack(sums[4], sums[5]), pack(sums[6], sums[7])));
}
