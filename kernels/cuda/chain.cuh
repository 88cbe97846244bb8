// The chain of products and attentions on the queries.

__host__ __device__ constexpr int width_of(int kind) { return kind == QKV ? 3 * HIDDEN : kind == UP ? FF : kind == KINDS ? OUT / OUT_PASSES : HIDDEN; }
__host__ __device__ constexpr int dim_of(int kind) { return kind == DOWN ? FF : HIDDEN; }
__host__ __device__ constexpr bool is_product(int kind) { return kind != SELF_ATTEND && kind != CROSS_ATTEND; }
__host__ __device__ constexpr bool has_norm(int kind) { return kind == QKV || kind == QUERY_OUT || kind == UP || kind == KINDS; }

// Where a layer's product begins among all weights, and among biases and sums of columns; those of the first layer begin with CROSS_OUT.
__host__ __device__ constexpr int weight_offset(int kind) {
  int offset = 0;
  for (int before = 0; before < kind; before++) offset += is_product(before) ? width_of(before) * dim_of(before) : 0;
  return offset;
}
__host__ __device__ constexpr int column_offset(int kind) {
  int offset = 0;
  for (int before = 0; before < kind; before++) offset += is_product(before) ? 2 * width_of(before) : 0;
  return offset;
}

template <int KIND>
DEVICE const Element* weights_of(const Parameters& p, int layer) {
  return p.weights + layer * weight_offset(KINDS) + (weight_offset(KIND % KINDS) - weight_offset(CROSS_OUT));
}

// Biases, behind them sums.
template <int KIND>
DEVICE const float* columns_of(const Parameters& p, int layer) {
  return p.columns + layer * column_offset(KINDS) + (column_offset(KIND % KINDS) - column_offset(CROSS_OUT));
}

// Where among a layer's buffers a product finds its input, the layer's before for QKV and the output, and leaves what it makes.
__host__ __device__ constexpr int input_of(int kind) {
  return kind == SELF_OUT ? MIXED : kind == CROSS_OUT ? ATTENDED : kind == QUERY_OUT ? AFTER_SELF : kind == UP ? AFTER_CROSS
         : kind == DOWN ? RAISED : AFTER_FF - LAYER_EXCHANGE;
}

__host__ __device__ constexpr int output_of(int kind) {
  return kind == QKV ? QUERY_KEYS : kind == SELF_OUT ? AFTER_SELF : kind == QUERY_OUT ? QUERY : kind == CROSS_OUT ? AFTER_CROSS
         : kind == UP ? RAISED : AFTER_FF;
}

// The block's units of 8 columns.
template <int WIDTH>
struct Units {
  int first, last;
  DEVICE Units(const Place& at) : first(at.share * (WIDTH / 8) / GROUPS), last((at.share + 1) * (WIDTH / 8) / GROUPS) {}
};

// A product's weight lies as its fragments do: [units of 8 rows, blocks of 32 columns, lanes, 8], see fragments() in persistent.py. A block's
// units are one piece of it, for which all warps ask, so that none is late for the next step. Bytes may come before they are expected.
template <int WIDTH, int DIM>
DEVICE void fetch_weights(const Place& at, const Element* weight, unsigned char* region, uint64_t* arrival) {
  if (at.thread & 31) return;
  Units<WIDTH> units(at);
  if (at.warp == 0) expect_bytes(arrival, (units.last - units.first) * DIM * 16);
#pragma unroll
  for (int unit = at.warp; unit < block_units(WIDTH); unit += WARPS)
    if (unit < units.last - units.first) copy_bulk(region + unit * DIM * 16, weight + (units.first + unit) * DIM * 8, DIM * 16, arrival);
}

// The block's 16 rows of x [ROWS, DIM] as fragments, once they are written; a warp has every eighth 32 places of the contracted axis.
// `meanwhile` is done while the first answer is on its way.
template <int DIM, int BLOCKS, typename Meanwhile>
DEVICE void take(const Place& at, const Element* x, uint4 (&a)[BLOCKS][2], Meanwhile meanwhile) {
  const Element* from = x + at.rows * DIM + at.warp * 512 + (at.thread & 31) * 8;
  bool first_time = true;
  await(REST, [&] {
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
      if (at.warp + i * WARPS < DIM / 32)
#pragma unroll
        for (int half = 0; half < 2; half++) a[i][half] = load_fresh(from + half * 256 + i * WARPS * 512);
    if (first_time) meanwhile();
    first_time = false;
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) largest = max(largest, max(largest_word(a[i][0]), largest_word(a[i][1])));
    return largest;
  });
}

// Sums and sums of squares of the warp's places in rows `group` and `group` + 8, in all four lanes of a quad.
template <int BLOCKS>
DEVICE void sum_rows(const uint4 (&a)[BLOCKS][2], float2 (&sums)[2]) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float2 sum = {0, 0};
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) add_squares(sum, a[i][half]);
    sums[half] = make_float2(quad_sum(sum.x), quad_sum(sum.y));
  }
}

// Mean and 1 / deviation of a row, of the sums [WARPS, 16] that its warps found.
DEVICE float2 row_statistics(const float2* sums, int row) {
  float2 sum = {0, 0};
#pragma unroll
  for (int warp = 0; warp < WARPS; warp++) sum.x += sums[warp * 16 + row].x, sum.y += sums[warp * 16 + row].y;
  return mean_and_scale(sum, 1.0f / HIDDEN);
}

// A warp's part of all units of columns, over its slice of the contracted axis. A block may have a unit less, whose place in the region
// then holds anything and whose result nobody reads; a place too many of the axis meets zeros. Neither needs a branch.
template <int DIM, int UNITS, int BLOCKS>
DEVICE void multiply_rows(const Place& at, const uint4 (&a)[BLOCKS][2], const unsigned char* region, float (&result)[UNITS][4]) {
#pragma unroll
  for (int i = 0; i < BLOCKS; i++) {
    const uint4* weights = (const uint4*)region + min(at.warp + i * WARPS, DIM / 32 - 1) * 32 + (at.thread & 31);
#pragma unroll
    for (int unit = 0; unit < UNITS; unit++) multiply_32(result[unit], a[i], weights[unit * DIM]);
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

// The error function within 1.5e-7: Abramowitz and Stegun, 7.1.26.
DEVICE float gelu(float x) {
  float z = fabsf(x) * 0.7071067811865476f, t = reciprocal(1 + 0.3275911f * z);
  float tail = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  float erf = 1 - tail * power_of_two(-1.4426950408889634f * z * z);
  return 0.5f * x * (1 + (x < 0 ? -erf : erf));
}

// Makes the other set ready for the next launch, some of it in every step while answers are on their way.
struct Clearing {
  uint4 *next, *end;
  int each;
  DEVICE Clearing(const Exchange& other) {
    next = (uint4*)other.chain + block_index() * THREADS + thread_index();
    end = (uint4*)other.end;
    each = divide_up((int)(end - (uint4*)other.chain), GRID * THREADS * PRODUCTS);
  }
  DEVICE void advance() {
    for (int i = 0; i < each && next < end; i++, next += GRID * THREADS) *next = make_uint4(UNWRITTEN, UNWRITTEN, UNWRITTEN, UNWRITTEN);
  }
  DEVICE void finish() {
    while (next < end) advance();
  }
};

struct Chain {
  const Parameters& p;
  Place at;
  unsigned char* shared;
  const Exchange& exchange;
  Clearing clearing;
  float2 residual;  // of this thread's columns, where a product has one
  int turn;         // of products; its parity says which region of weights is meant

  DEVICE unsigned char* region(int turn) const { return shared + (turn & 1) * EVEN_REGION; }
  DEVICE uint64_t* arrival(int turn) const { return (uint64_t*)(shared + ARRIVALS_AT) + (turn & 1); }

  template <int KIND>
  DEVICE void fetch(int layer, int turn, int part = 0) {
    const Element* weight = weights_of<KIND>(p, layer) + part * width_of(KIND) * dim_of(KIND);
    fetch_weights<width_of(KIND), dim_of(KIND)>(at, weight, region(turn), arrival(turn));
  }

  // Ask for the next product's weights, in the place of those of the product before.
  template <int KIND>
  DEVICE void fetch_next(int layer, bool self) {
    if (KIND == QKV) fetch<SELF_OUT>(layer, turn + 1);
    if (KIND == QUERY_OUT) fetch<CROSS_OUT>(layer, turn + 1);
    if (KIND == CROSS_OUT && self) fetch<QUERY_OUT>(layer, turn + 1);
    if (KIND == CROSS_OUT && !self) fetch<UP>(layer, turn + 1);
    if (KIND == UP) fetch<DOWN>(layer, turn + 1);
    if (KIND == DOWN && layer + 1 < LAYERS) fetch<QKV>(layer + 1, turn + 1);
    if (KIND == DOWN && layer + 1 == LAYERS) fetch<KINDS>(LAYERS, turn + 1);
  }

  DEVICE void load_residual() {
    Units<HIDDEN> units(at);
    int row = at.rows + (at.thread >> 4), column = units.first * 8 + (at.thread & 15) * 2;
    residual = make_float2(0, 0);
    if (row < QUERIES && column < units.last * 8) residual = *(const float2*)(p.hidden_states + row * HIDDEN + column);
  }

  // A product, with the norm before it and GELU or the residual after it. It writes the next step's input: for QKV queries and keys
  // [ROWS, 2 HIDDEN] and values [HIDDEN, ROWS], else [ROWS, width]; behind the last layer all parts of the output, one after the other.
  // SELF_OUT goes by the code of CROSS_OUT, with `self`.
  template <int KIND>
  DEVICE void product(int layer, bool self = false) {
    constexpr int DIM = dim_of(KIND), WIDTH = width_of(KIND), BLOCKS = divide_up(DIM / 32, WARPS), UNITS = block_units(WIDTH), PASSES = divide_up(UNITS, 4);
    constexpr bool NORM = has_norm(KIND);
    Element* own = exchange.chain + layer * LAYER_EXCHANGE;
    Units<WIDTH> units(at);
    float* parts = (float*)(shared + SLICES_AT);
    float2* row_sums = (float2*)(shared + SUMS_AT);
    uint4 a[BLOCKS][2] = {};
    float2 bias[PASSES], column_sums[PASSES];
    load_columns<WIDTH, NORM>(self ? columns_of<SELF_OUT>(p, layer) : columns_of<KIND>(p, layer), units, bias, column_sums);
    // Weights are mostly there before the input.
    wait_for_bytes(arrival(turn), turn >> 1 & 1);
    take<DIM>(at, own + (self ? input_of(SELF_OUT) : input_of(KIND)), a, [&] { fetch_next<KIND>(layer, self), clearing.advance(); });
    stamp(p.stamps, 6 + 2 * (layer * KINDS + (self ? SELF_OUT : KIND % KINDS)));
    if (NORM) {
      float2 sums[2];
      sum_rows(a, sums);
      if (at.quad < 2) row_sums[at.warp * 16 + at.group + at.quad * 8] = at.quad ? sums[1] : sums[0];
    }
#pragma unroll 1
    for (int part = 0; part < (KIND == KINDS ? OUT_PASSES : 1); part++) {
      if (part > 0) load_columns<WIDTH, NORM>(columns_of<KIND>(p, layer) + part * 2 * WIDTH, units, bias, column_sums);
      if (part > 0) wait_for_bytes(arrival(turn), turn >> 1 & 1);
      if (KIND == KINDS && part + 1 < OUT_PASSES) fetch<KIND>(layer, turn + 1, part + 1);
      float result[UNITS][4] = {};
      multiply_rows<DIM>(at, a, region(turn), result);
      // What the step before this has left there was read by all.
      block_sync();
      float2 statistics = NORM ? row_statistics(row_sums, at.thread >> 4) : make_float2(0, 1);
      keep_rows(at, result, parts);
      block_sync();
      finish_columns<KIND>(part, own + (self ? output_of(SELF_OUT) : output_of(KIND)), units, statistics, bias, column_sums, parts);
      turn++;
      stamp(p.stamps, 7 + 2 * (layer * KINDS + (self ? SELF_OUT : KIND % KINDS) + part));
    }
  }

  // What is added to this thread's columns, two in every 32, and what the norm takes from them.
  template <int WIDTH, bool NORM, int PASSES>
  DEVICE void load_columns(const float* columns, const Units<WIDTH>& units, float2 (&bias)[PASSES], float2 (&sums)[PASSES]) {
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
      int column = units.first * 8 + pass * 32 + (at.thread & 15) * 2;
      bias[pass] = sums[pass] = make_float2(0, 0);
      if (column < units.last * 8) {
        bias[pass] = *(const float2*)(columns + column);
        if (NORM) sums[pass] = *(const float2*)(columns + WIDTH + column);
      }
    }
  }

  // Add the warps' parts of two in every 32 columns of a row, sixteen threads a row, and write what becomes of them. Columns beyond the
  // block's are computed from anything and dropped, so that all are under way at once.
  template <int KIND, int PASSES>
  DEVICE void finish_columns(int part, Element* output, const Units<width_of(KIND)>& units, float2 statistics, const float2 (&bias)[PASSES],
                             const float2 (&column_sums)[PASSES], const float* parts) {
    const float* from = parts + (at.thread >> 4) * LINE + (at.thread & 15) * 2;
    float2 value[PASSES];
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
      float2 sum = {0, 0};
#pragma unroll
      for (int slice = 0; slice < WARPS; slice++) {
        float2 more = *(const float2*)(from + slice * 16 * LINE + pass * 32);
        sum.x += more.x;
        sum.y += more.y;
      }
      value[pass].x = statistics.y * (sum.x - statistics.x * column_sums[pass].x) + bias[pass].x;
      value[pass].y = statistics.y * (sum.y - statistics.x * column_sums[pass].y) + bias[pass].y;
      if (KIND == UP) value[pass] = make_float2(gelu(value[pass].x), gelu(value[pass].y));
    }
    // What ends in HIDDEN columns and has no norm has a residual, of one pass.
    if (KIND == CROSS_OUT || KIND == DOWN) {
      residual = make_float2(residual.x + value[0].x, residual.y + value[0].y);
      value[0] = residual;
    }
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) write_columns<KIND>(part, output, units, pass * 32 + (at.thread & 15) * 2, value[pass]);
  }

  // Write two columns of a row, the first of them `inside` the block's.
  template <int KIND>
  DEVICE void write_columns(int part, Element* output, const Units<width_of(KIND)>& units, int inside, float2 value) {
    constexpr int WIDTH = width_of(KIND);
    int row = at.rows + (at.thread >> 4), column = units.first * 8 + inside;
    uint32_t pair = pack(value.x, value.y);
    Element* to = output + placed(row, column, KIND == QKV ? 2 * HIDDEN : WIDTH);
    if (KIND == KINDS) to = p.output + part * WIDTH + row * OUT + column;
    if (KIND == QKV) {
      // Two rows of a column lie side by side among the values; the next row's thread is 16 lanes away.
      bool odd = row & 1;
      float other = warp_exchange(odd ? value.x : value.y, 16);
      if (column >= 2 * HIDDEN) {
        to = output + (VALUES - QUERY_KEYS) + placed_value(row - odd, column - 2 * HIDDEN + odd);
        pair = odd ? pack(other, value.y) : pack(value.x, other);
      }
    }
    if (column < units.last * 8 && (KIND != KINDS || row < QUERIES)) publish(to, pair);
  }

  // A layer's attention among the queries, or over the context.
  DEVICE void attend_in(int layer, bool self) {
    Element* own = exchange.chain + layer * LAYER_EXCHANGE;
    int head = at.share % HEADS, split = at.share / HEADS, total = p.vlm_tokens + p.dino_tokens, padded = divide_up(total, 32) * 32;
    int blocks = self ? KEY_BLOCKS : padded / 32, splits = self ? 1 : SPLITS, each = divide_up(blocks, splits);
    if (split >= splits) return;
    const Element *query = self ? own + QUERY_KEYS : layer ? own + QUERY : p.query;
    const Element *keys = self ? query : exchange.keys_values + 2 * layer * padded * HIDDEN, *values = self ? own + VALUES : exchange.keys_values + (2 * layer + 1) * padded * HIDDEN;
    attend(at, shared, head * HEAD, query, keys, self ? 2 * HIDDEN : HIDDEN, self ? HIDDEN : 0, values, split * each, min(blocks, (split + 1) * each),
           self ? QUERIES : min(p.dino_tokens + p.lengths[0], total), self ? ROWS : padded,
           own + (self ? MIXED : PARTS + split * ROWS * HIDDEN), self ? nullptr : (float*)(own + LOGS) + head * 4 + split);
    if (!self) merge_parts(at, split, head, own + PARTS, (const uint32_t*)(own + LOGS), own + ATTENDED);
    stamp(p.stamps, 7 + 2 * (layer * KINDS + (self ? SELF_ATTEND : CROSS_ATTEND)));
  }

  DEVICE void run() {
    // Half a layer at a time, so that both halves share the code of an attention: what does not fit the instruction cache is slow.
#pragma unroll 1
    for (int half = 1; half < 2 * LAYERS; half++) {
      int layer = half / 2;
      bool self = half % 2 == 0;
      renew(at.share), renew(at.thread);
      if (self) product<QKV>(layer);
      attend_in(layer, self);
      product<CROSS_OUT>(layer, self);
      if (self) {
        product<QUERY_OUT>(layer);
      } else {
        product<UP>(layer);
        product<DOWN>(layer);
      }
    }
    product<KINDS>(LAYERS);
  }
};
