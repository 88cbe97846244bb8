// The chain of products and attentions on the queries.

__host__ __device__ constexpr int width_of(int kind) { return kind == QKV ? 3 * HIDDEN : kind == UP ? FF : kind == KINDS ? OUT : HIDDEN; }
__host__ __device__ constexpr int dim_of(int kind) { return kind == DOWN ? FF : HIDDEN; }
__host__ __device__ constexpr bool has_norm(int kind) { return kind == QKV || kind == UP || kind == KINDS; }

// Where a layer's step begins among all weights, and among biases and sums of columns; those of the first layer begin with CROSS_OUT.
__host__ __device__ constexpr int weight_size(int kind) {
  return kind == SELF_ATTEND || kind == CROSS_ATTEND ? 0 : (kind == QKV ? GROUPS * QKV_UNITS * 8 : kind == SELF_OUT ? 2 * HIDDEN : width_of(kind)) * dim_of(kind);
}
__host__ __device__ constexpr int weight_offset(int kind) {
  int offset = 0;
  for (int before = 0; before < kind; before++) offset += weight_size(before);
  return offset;
}
__host__ __device__ constexpr int column_offset(int kind) {
  int offset = 0;
  for (int before = 0; before < kind; before++) offset += before == SELF_ATTEND ? 0 : 2 * width_of(before);
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

// Where among a layer's buffers a product finds its input, the layer's before for QKV and the output.
__host__ __device__ constexpr int input_of(int kind) {
  return kind == CROSS_OUT ? ATTENDED : kind == UP ? AFTER_CROSS : kind == DOWN ? RAISED : AFTER_FF - LAYER_EXCHANGE;
}

#ifdef STAMPS
static_assert(7 + 2 * LAYERS * KINDS < STAMPS, "stamps");
#endif

struct Chain {
  const Parameters& p;
  Place at;
  unsigned char* shared;
  const Exchange& exchange;
  int key_count;  // of the context, that take part
  Clearing clearing;
  float residual[4];  // of the unit of HIDDEN columns that the warp finishes, as `multiply_add` leaves it
  int turn;           // of weights; its parity says which region of them is meant

  DEVICE unsigned char* region(int turn) const { return shared + (turn & 1) * REGION; }
  DEVICE uint64_t* arrival(int turn) const { return (uint64_t*)(shared + ARRIVALS_AT) + (turn & 1); }
  DEVICE void wait_for_weights() const { wait_for_arrival(arrival(turn), turn >> 1 & 1); }
  DEVICE Element* buffers(int layer) const { return exchange.chain + (layer * LAYER_EXCHANGE - LOGS); }
  DEVICE uint2* slices() const { return (uint2*)(shared + SLICES_AT); }
  DEVICE float2* row_sums() const { return (float2*)(shared + SUMS_AT); }
  DEVICE float4* query_of(int unit) const { return (float4*)(shared + QUERY_AT) + unit * 32 + (at.thread & 31); }

  // Ask for the block's weights of a turn in one piece, in the place of those two turns before. Of a product that is most units that a block
  // has, see fragments() and dealt() in arrangement.py, of the output, which has two turns, those of either; of SELF_OUT the block's slice, see
  // sliced_fragments(), or nothing.
  template <int KIND, bool REST = false>
  DEVICE void fetch(int layer, int turn) const {
    constexpr int DIM = dim_of(KIND), UNITS = KIND == QKV ? QKV_UNITS : KIND < KINDS ? block_units(width_of(KIND)) : REST ? OUT_REST : OUT_FIRST;
    constexpr int SIZE = (KIND == SELF_OUT ? HEAD : 8 * UNITS) * DIM;
    if (at.thread != FETCHER) return;
    const Element* from = weights_of<KIND>(p, layer);
    from += KIND == QKV || KIND == SELF_OUT ? at.share * SIZE : (Units<width_of(KIND)>(at).first + (REST ? OUT_FIRST : 0)) * 8 * DIM;
    int size = KIND == SELF_OUT && at.share >= 2 * HEADS ? 0 : SIZE;
    expect_bytes(arrival(turn), size * 2);
    if (size > 0) copy_bulk(region(turn), from, size * 2, arrival(turn));
  }

  // Ask for the weights of the next turn, whose region all warps have left, once a product's input, or an attention's keys and values, are there: they would
  // come in its way. The first layer's attention begins with those of its own turn.
  template <int KIND>
  DEVICE void fetch_next(int layer) const {
    if (KIND == QKV) fetch<SELF_OUT>(layer, turn + 1);
    if (KIND == SELF_ATTEND) fetch<CROSS_OUT>(layer, turn + 1);
    if (KIND == CROSS_ATTEND && layer == 0) fetch<CROSS_OUT>(layer, turn);
    if (KIND == CROSS_ATTEND) fetch<UP>(layer, turn + 1);
    if (KIND == UP) fetch<DOWN>(layer, turn + 1);
    if (KIND == DOWN && layer + 1 < LAYERS) fetch<QKV>(layer + 1, turn + 1);
    if (KIND == DOWN && layer + 1 == LAYERS) fetch<KINDS>(LAYERS, turn + 1);
  }

  DEVICE void fetch_after_attention(int layer, bool self) const { self ? fetch_next<SELF_ATTEND>(layer) : fetch_next<CROSS_ATTEND>(layer); }

  DEVICE void load_residual() {
    Units<HIDDEN> units(at);
    int column = (units.first + at.warp) * 8 + at.quad * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = at.rows + at.group + half * 8;
      float2 pair = {0, 0};
      if (row < QUERIES && units.first + at.warp < units.last) pair = *(const float2*)(p.hidden_states + row * HIDDEN + column);
      residual[half * 2] = pair.x, residual[half * 2 + 1] = pair.y;
    }
  }

  // A product, with the norm before it and GELU or the residual after it. It writes the next step's input: for QKV queries and keys
  // [ROWS, 2 HIDDEN] and values [HIDDEN, ROWS], else [ROWS, width]; behind the last layer the output. What QKV makes of the cross-attention's query
  // is kept. Each unit of columns is finished by one warp.
  template <int KIND>
  DEVICE void product(int layer) {
    constexpr int DIM = dim_of(KIND), WIDTH = width_of(KIND), BLOCKS = divide_up(DIM / 32, WARPS), UNITS = KIND == QKV ? QKV_UNITS : block_units(WIDTH);
    constexpr int FIRST = KIND == KINDS ? OUT_FIRST : UNITS, EACH = divide_up(UNITS, WARPS);
    static_assert(EACH <= 3, "units that a warp finishes");
    constexpr bool NORM = has_norm(KIND);
    Units<WIDTH> units(at);
    uint4 a[BLOCKS][2];
    float2 bias[EACH], column_sums[EACH];
    load_columns(columns_of<KIND>(p, layer), units, bias, column_sums);
    // Weights are mostly there before the input.
    wait_for_weights();
    // What the step before this has left among the slices was read by all.
    block_sync();
    take<DIM>(at, buffers(layer) + input_of(KIND), a, [&] {
      clearing.advance();
      // The rest of the output's, in the place of DOWN's; behind the first look, not ahead of it.
      if (FIRST < UNITS) fetch<KIND, true>(layer, turn + 1);
    });
    fetch_next<KIND>(layer);
    stamp(p.stamps, 6 + 2 * (layer * KINDS + KIND % KINDS));
    // Side by side with the product.
    RowSums sums = {};
    if (NORM)
#pragma unroll
      for (int i = 0; i < BLOCKS; i++) sums.add(a[i]);
    float result[UNITS][4] = {};
    multiply_rows<DIM, 0, FIRST>(at, a, region(turn), result);
    turn++;
    if (FIRST < UNITS) {
      wait_for_weights();
      multiply_rows<DIM, FIRST, UNITS - FIRST>(at, a, region(turn), result);
    }
    keep_slices(at, result, slices());
    if (NORM) sums.leave(at, row_sums());
    block_sync();
    // Warps that all have a unit need no branch.
    if (UNITS >= WARPS || at.warp < UNITS) finish<KIND, UNITS>(layer, units, bias, column_sums);
    stamp(p.stamps, 7 + 2 * (layer * KINDS + KIND % KINDS));
  }

  // What is added to two columns of each unit that the warp finishes, and what the norm takes from them or, in a sum, is added to the query.
  template <int WIDTH, int EACH>
  DEVICE void load_columns(const float* columns, const Units<WIDTH>& units, float2 (&bias)[EACH], float2 (&sums)[EACH]) {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      int unit = units.first + at.warp + i * WARPS, column = unit * 8 + at.quad * 2;
      bias[i] = sums[i] = make_float2(0, 0);
      if (unit < units.last) bias[i] = *(const float2*)(columns + column), sums[i] = *(const float2*)(columns + WIDTH + column);
    }
  }

  // What the block's warps left of its units, from the warp's own on, all of these at once: a chain of instructions takes hardly longer twice.
  template <int KIND, int UNITS, int EACH>
  DEVICE void finish(int layer, const Units<width_of(KIND)>& units, const float2 (&bias)[EACH], const float2 (&column_sums)[EACH]) {
    constexpr int OWN = block_units(width_of(KIND));
    float value[EACH][4];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      // One too many is the last one again, and dropped.
      int unit = at.warp + i * WARPS;
      add_slices(at, slices(), min(unit, UNITS - 1), value[i]);
      if (unit >= OWN && unit < UNITS) *query_of(unit - OWN) = make_float4(value[i][0], value[i][1], value[i][2], value[i][3]);
    }
    // Means and 1 / deviations of the rows `group` and `group` + 8.
    float2 statistics[2] = {{0, 1}, {0, 1}};
    if (has_norm(KIND))
#pragma unroll
      for (int half = 0; half < 2; half++) statistics[half] = row_statistics(at, row_sums(), at.group + half * 8);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      if (i * WARPS >= OWN) break;
      if (has_norm(KIND)) subtract_mean(value[i], statistics, column_sums[i]);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        value[i][j] += j & 1 ? bias[i].y : bias[i].x;
        if (KIND == UP) value[i][j] = gelu(value[i][j]);
        if (KIND == CROSS_OUT || KIND == DOWN) value[i][j] = residual[j] += value[i][j];
      }
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      int unit = at.warp + i * WARPS;
      if (unit < OWN && units.first + unit < units.last) write_unit<KIND>(layer, (units.first + unit) * 8, value[i]);
    }
  }

  // The norm of two columns of two rows.
  DEVICE static void subtract_mean(float (&value)[4], const float2 (&rows)[2], float2 sums) {
#pragma unroll
    for (int i = 0; i < 4; i++) value[i] = rows[i / 2].y * (value[i] - rows[i / 2].x * (i & 1 ? sums.y : sums.x));
  }

  // Write eight columns from `column` on.
  template <int KIND>
  DEVICE void write_unit(int layer, int column, const float (&value)[4]) {
    constexpr int WIDTH = width_of(KIND);
    // What does not depend on the unit is found once.
    int row = at.rows + at.group, own = at.quad * 2;
    uint2 pairs = {pack(value[0], value[1]), pack(value[2], value[3])};
    Element* output = buffers(layer);
    if (KIND == KINDS) {
      Element* to = p.output + row * OUT + own + column;
      if (row < QUERIES) publish(to, pairs.x);
      if (row + 8 < QUERIES) publish(to + 8 * OUT, pairs.y);
    } else if (KIND != QKV) {
      publish_four(output + (KIND == CROSS_OUT ? AFTER_CROSS : KIND == UP ? RAISED : AFTER_FF) + placed_input(row, own, WIDTH) + placed_input(0, column, WIDTH), pairs);
    } else if (column < 2 * HIDDEN) {
      Element* to = output + QUERY_KEYS + placed(row, own, 2 * HIDDEN) + placed(0, column, 2 * HIDDEN);
      publish(to, pairs.x), publish(to + 8 * 32, pairs.y);
    } else {
      // Two rows of a column lie side by side among the values.
      Element* to = output + VALUES + placed_value(at.rows + at.quad * 2, column - 2 * HIDDEN + at.group);
      publish(to, transposed(pairs.x)), publish(to + 8, transposed(pairs.y));
    }
  }

  // A layer's attention among the queries, or over the context.
  DEVICE void attend_in(int layer, bool self) {
    Element* own = buffers(layer);
    int head = at.share % HEADS, split = at.share / HEADS, padded = divide_up(p.vlm_tokens + p.dino_tokens, 32) * 32;
    int blocks = self ? KEY_BLOCKS : padded / 32, each = self ? blocks : divide_up(blocks, SPLITS);
    const Element *query = self ? own + QUERY_KEYS : layer ? own + QUERY : p.query;
    QueryNorm norm = {self || layer == 0 ? nullptr : (const float2*)(own + ROW_SUMS), columns_of<CROSS_ATTEND>(p, layer)};
    if (self) split = 0;
    const Element *keys = self ? query : exchange.keys_values + 2 * layer * padded * HIDDEN, *values = self ? own + VALUES : exchange.keys_values + (2 * layer + 1) * padded * HIDDEN;
    HeadKeys from = {keys, values, head * HEAD, self ? 2 * HIDDEN : HIDDEN, self ? HIDDEN : 0, self ? ROWS : padded};
    attend(at, shared, query, norm, from, split * each, min(blocks, (split + 1) * each), self ? QUERIES : key_count, self ? nullptr : own + PARTS + split * ROWS * HIDDEN,
           (float*)(own + LOGS) + head * 4 + split, layer ? INPUT_AHEAD : 0);
    fetch_after_attention(layer, self);
    if (!self) merge_parts(at, split, head, own + PARTS, (const uint32_t*)(own + LOGS), own + ATTENDED);
    stamp(p.stamps, 7 + 2 * (layer * KINDS + (self ? SELF_ATTEND : CROSS_ATTEND)));
  }

  // The block's part of SELF_OUT: the head that it keeps times its rows of the weight, a warp 16 columns at a time. Written as [row tiles, units,
  // sources, lanes, 4], in which order `reduce` multiplies it.
  DEVICE void scatter(int layer) {
    constexpr int TILES = HIDDEN / 16, EACH = divide_up(TILES, WARPS);
    int lane = at.thread & 31;
    const uint4* weights = (const uint4*)region(turn) + lane;
    // Columns by rows.
    float result[EACH][2][4] = {};
#pragma unroll
    for (int block = 0; block < HEAD / 16; block++) {
      uint2 low = *(const uint2*)kept_of(shared, at.group, block * 16 + at.quad * 4), high = *(const uint2*)kept_of(shared, at.group + 8, block * 16 + at.quad * 4);
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        // A tile too many is another one again, and dropped.
        int tile = at.warp + i * WARPS;
        uint4 a = weights[(block * TILES + ((i + 1) * WARPS > TILES ? min(tile, TILES - 1) : tile)) * 32];
        multiply_16(result[i][0], a, low.x, low.y);
        multiply_16(result[i][1], a, high.x, high.y);
      }
    }
    Element* to = parts_of(layer) + ((at.rows / 16 * TILES + at.warp) * 2 * SELF_SOURCES + at.share) * 128 + lane * 4;
#pragma unroll
    for (int i = 0; i < EACH; i++, to += 2 * WARPS * SELF_SOURCES * 128) {
      if ((i + 1) * WARPS > TILES && at.warp + i * WARPS >= TILES) continue;
#pragma unroll
      for (int half = 0; half < 4; half += 2)
        publish_four(to + half / 2 * SELF_SOURCES * 128, uint2{pack(result[i][0][half], result[i][0][half + 1]), pack(result[i][1][half], result[i][1][half + 1])});
    }
  }

  DEVICE Element* parts_of(int layer) const { return exchange.chain_parts + (layer - 1) * LAYER_PARTS; }

  // SELF_OUT: all heads' parts, bias and residual. Nobody reads the sum itself, but sums of its rows for the norm, and the query that it and QKV
  // make. Four warps have a unit of columns of the sum each, four one of the query, and multiply the parts by a diagonal of ones, which takes fewer
  // instructions than adding them.
  DEVICE void reduce(int layer) {
    Units<HIDDEN> units(at);
    int unit = at.warp & 3, column = (units.first + unit) * 8 + at.quad * 2, place = placed(at.rows + at.group, column, HIDDEN);
    bool query = at.warp >= 4, own = units.first + unit < units.last;
    // Where the result goes is computed before the wait.
    renew(place);
    Element* from = parts_of(layer) + ((at.rows / 16 * (HIDDEN / 8) + units.first + unit) * SELF_SOURCES + query * HEADS) * 128 + (at.thread & 31) * 4;
    uint2 part[HEADS] = {};
    float2 bias = {0, 0};
    if (own) bias = *(const float2*)(columns_of<SELF_OUT>(p, layer) + query * HIDDEN + column);
    bool first_time = true;
    await_at_work(SUM_AHEAD, [&] {
      uint32_t largest = 0;
#pragma unroll
      for (int i = 0; i < HEADS; i++)
        if (own) part[i] = load_pair(from + i * 128);
      if (first_time) clearing.advance();
      first_time = false;
#pragma unroll
      for (int i = 0; i < HEADS; i++) largest = max(largest, max(part[i].x, part[i].y));
      return largest;
    });
    stamp(p.stamps, 6 + 2 * (layer * KINDS + SELF_OUT));
    // Nobody else reads them.
#pragma unroll
    for (int i = 0; i < HEADS; i++)
      if (own) publish_four(from + i * 128, uint2{UNWRITTEN, UNWRITTEN});
    float sums[2][4] = {};
    uint32_t ones = diagonal(at, 1);
#pragma unroll
    for (int i = 0; i < HEADS; i++) multiply_add(sums[i & 1], ones, 0, 0, ones, part[i].x, part[i].y);
    float value[4];
#pragma unroll
    for (int i = 0; i < 4; i++) value[i] = sums[0][i] + sums[1][i] + (i & 1 ? bias.y : bias.x);
    if (query && own) {
      float4 raw = *query_of(unit);
      Element* to = buffers(layer) + QUERY + place;
      publish(to, pack(value[0] + raw.x, value[1] + raw.y)), publish(to + 8 * 32, pack(value[2] + raw.z, value[3] + raw.w));
    }
    if (!query) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float x = residual[half * 2] += value[half * 2], y = residual[half * 2 + 1] += value[half * 2 + 1];
        float2 sum = {quad_sum(own ? x + y : 0), quad_sum(own ? x * x + y * y : 0)};
        if (at.quad == 0) row_sums()[unit * 16 + at.group + half * 8] = sum;
      }
    }
    block_sync();
    if (at.thread < 16) {
      float2 sum = {0, 0};
#pragma unroll
      for (int i = 0; i < 4; i++) sum.x += row_sums()[i * 16 + at.thread].x, sum.y += row_sums()[i * 16 + at.thread].y;
      publish_four((float2*)(buffers(layer) + ROW_SUMS) + (at.rows + at.thread) * GROUPS + at.share, uint2{__float_as_uint(sum.x), __float_as_uint(sum.y)});
    }
    stamp(p.stamps, 7 + 2 * (layer * KINDS + SELF_OUT));
  }

  DEVICE void run() {
    // Half a layer at a time, so that both halves share the code of an attention: what does not fit the instruction cache is slow.
#pragma unroll 1
    for (int half = 1; half < 2 * LAYERS; half++) {
      int layer = half / 2;
      bool self = half % 2 == 0, attends = at.share < HEADS * (self ? 2 : SPLITS);
      renew(at.share), renew(at.thread);
      if (self) product<QKV>(layer);
      if (attends) attend_in(layer, self);
      else pause_at_work(self ? SELF_AHEAD : CROSS_AHEAD), fetch_after_attention(layer, self);
      if (self) {
        if (attends) wait_for_weights();
        // What is kept is there, and what the warps left has been read.
        block_sync();
        if (attends) scatter(layer);
        reduce(layer);
        turn++;
      } else {
        product<CROSS_OUT>(layer);
        product<UP>(layer);
        product<DOWN>(layer);
      }
    }
    product<KINDS>(LAYERS);
  }
};
