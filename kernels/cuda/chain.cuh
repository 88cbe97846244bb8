// The chain of products and attentions on the queries.

__host__ __device__ constexpr int width_of(int kind) { return kind == QKV ? 3 * HIDDEN : kind == UP ? FF : kind == KINDS ? OUT / OUT_PASSES : HIDDEN; }
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
static_assert(7 + 2 * (LAYERS * KINDS + OUT_PASSES - 1) < STAMPS, "stamps");
#endif

struct Chain {
  const Parameters& p;
  Place at;
  unsigned char* shared;
  const Exchange& exchange;
  Clearing clearing;
  float2 residual;  // of this thread's columns of sums
  int turn;         // of weights; its parity says which region of them is meant

  DEVICE unsigned char* region(int turn) const { return shared + (turn & 1) * REGION; }
  DEVICE uint64_t* arrival(int turn) const { return (uint64_t*)(shared + ARRIVALS_AT) + (turn & 1); }
  DEVICE void wait_for_weights() const { wait_for_bytes(arrival(turn), turn >> 1 & 1); }
  DEVICE Element* buffers(int layer) const { return exchange.chain + (layer * LAYER_EXCHANGE - LOGS); }
  DEVICE float* slices() const { return (float*)(shared + SLICES_AT); }
  DEVICE float2* query_of(int row, int inside) const { return (float2*)(shared + QUERY_AT) + row * NARROW * 4 + inside / 2; }

  // Of 16 rows the one that a thread finishes; queries, keys and values lie row by row.
  template <int KIND>
  DEVICE int row_of() const { return KIND == QKV ? at.thread >> 4 : at.paired_row(); }

  // Ask for the block's weights of a step in one piece, in the place of those two turns before. Of a product that is most units that a block
  // has, see fragments() and dealt() in arrangement.py; of SELF_OUT the block's slice, see sliced_fragments(), or nothing.
  template <int KIND>
  DEVICE void fetch(int layer, int turn, int part = 0) const {
    constexpr int DIM = dim_of(KIND), SIZE = (KIND == SELF_OUT ? HEAD : 8 * (KIND == QKV ? QKV_UNITS : block_units(width_of(KIND)))) * DIM;
    if (at.thread != FETCHER) return;
    const Element* from = weights_of<KIND>(p, layer) + part * width_of(KIND) * DIM;
    from += KIND == QKV || KIND == SELF_OUT ? at.share * SIZE : Units<width_of(KIND)>(at).first * 8 * DIM;
    int size = KIND == SELF_OUT && at.share >= 2 * HEADS ? 0 : SIZE;
    expect_bytes(arrival(turn), size * 2);
    if (size > 0) copy_bulk(region(turn), from, size * 2, arrival(turn));
  }

  // Ask for the weights of the step after the next, in the place of those of the step that is done.
  template <int KIND>
  DEVICE void fetch_next(int layer, int part) const {
    bool last = layer + 1 == LAYERS;
    if (KIND == QKV) fetch<CROSS_OUT>(layer, turn + 2);
    if (KIND == SELF_OUT) fetch<UP>(layer, turn + 2);
    if (KIND == CROSS_OUT) fetch<DOWN>(layer, turn + 2);
    if (KIND == UP && !last) fetch<QKV>(layer + 1, turn + 2);
    if (KIND == UP && last) fetch<KINDS>(LAYERS, turn + 2);
    if (KIND == DOWN && !last) fetch<SELF_OUT>(layer + 1, turn + 2);
    if (KIND == DOWN && last && OUT_PASSES > 1) fetch<KINDS>(LAYERS, turn + 2, 1);
    if (KIND == KINDS && part + 2 < OUT_PASSES) fetch<KINDS>(LAYERS, turn + 2, part + 2);
  }

  DEVICE void load_residual() {
    Units<HIDDEN> units(at);
    int row = at.rows + row_of<CROSS_OUT>(), column = units.first * 8 + (at.thread & 15) * 2;
    residual = make_float2(0, 0);
    if (row < QUERIES && column < units.last * 8) residual = *(const float2*)(p.hidden_states + row * HIDDEN + column);
  }

  // A product, with the norm before it and GELU or the residual after it. It writes the next step's input: for QKV queries and keys
  // [ROWS, 2 HIDDEN] and values [HIDDEN, ROWS], else [ROWS, width]; behind the last layer all parts of the output, one after the other. What QKV
  // makes of the cross-attention's query is kept.
  template <int KIND>
  DEVICE void product(int layer) {
    constexpr int DIM = dim_of(KIND), WIDTH = width_of(KIND), BLOCKS = divide_up(DIM / 32, WARPS), OWN = block_units(WIDTH), UNITS = KIND == QKV ? QKV_UNITS : OWN;
    constexpr int PASSES = divide_up(OWN, 4);
    constexpr bool NORM = has_norm(KIND);
    Units<WIDTH> units(at);
    float2* row_sums = (float2*)(shared + SUMS_AT);
    uint4 a[BLOCKS][2];
    float2 bias[PASSES], column_sums[PASSES];
    load_columns(columns_of<KIND>(p, layer), units, bias, column_sums);
    // Weights are mostly there before the input.
    wait_for_weights();
    take<DIM>(at, buffers(layer) + input_of(KIND), a, [&] { clearing.advance(); });
    stamp(p.stamps, 6 + 2 * (layer * KINDS + KIND % KINDS));
    if (NORM) sum_rows(at, a, row_sums);
#pragma unroll 1
    for (int part = 0; part < (KIND == KINDS ? OUT_PASSES : 1); part++) {
      if (part > 0) load_columns(columns_of<KIND>(p, layer) + part * 2 * WIDTH, units, bias, column_sums);
      if (part > 0) wait_for_weights();
      float result[UNITS][4] = {};
      multiply_rows<DIM>(at, a, region(turn), result);
      // What the step before this has left there was read by all.
      block_sync();
      float2 statistics = NORM ? row_statistics(row_sums, row_of<KIND>()) : make_float2(0, 1);
      keep_rows(at, result, slices());
      block_sync();
      float2 value[divide_up(UNITS, 4)];
      add_slices<KIND>(value);
#pragma unroll
      for (int pass = OWN / 4; KIND == QKV && pass < divide_up(UNITS, 4); pass++) {
        int inside = pass * 32 + (at.thread & 15) * 2 - OWN * 8;
        if (inside >= 0 && inside < NARROW * 8) *query_of(row_of<KIND>(), inside) = value[pass];
      }
#pragma unroll
      for (int pass = 0; pass < PASSES; pass++) {
        value[pass].x = statistics.y * (value[pass].x - statistics.x * column_sums[pass].x) + bias[pass].x;
        value[pass].y = statistics.y * (value[pass].y - statistics.x * column_sums[pass].y) + bias[pass].y;
        if (KIND == UP) value[pass] = make_float2(gelu(value[pass].x), gelu(value[pass].y));
      }
      // What ends in HIDDEN columns has a residual, of one pass.
      if (KIND == CROSS_OUT || KIND == DOWN) value[0] = residual = make_float2(residual.x + value[0].x, residual.y + value[0].y);
#pragma unroll
      for (int pass = 0; pass < PASSES; pass++) write_columns<KIND>(layer, part, units, pass * 32 + (at.thread & 15) * 2, value[pass]);
      fetch_next<KIND>(layer, part);
      turn++;
      stamp(p.stamps, 7 + 2 * (layer * KINDS + KIND % KINDS + part));
    }
  }

  // What is added to this thread's columns, two in every 32, and what the norm takes from them or, in a sum, is added to the query.
  template <int WIDTH, int PASSES>
  DEVICE void load_columns(const float* columns, const Units<WIDTH>& units, float2 (&bias)[PASSES], float2 (&sums)[PASSES]) {
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
      int column = units.first * 8 + pass * 32 + (at.thread & 15) * 2;
      bias[pass] = sums[pass] = make_float2(0, 0);
      if (column < units.last * 8) bias[pass] = *(const float2*)(columns + column), sums[pass] = *(const float2*)(columns + WIDTH + column);
    }
  }

  // Add the warps' parts of two in every 32 columns of a row, sixteen threads a row. Columns beyond the block's are computed from anything and
  // dropped, so that all are under way at once.
  template <int KIND, int PASSES>
  DEVICE void add_slices(float2 (&value)[PASSES], int first = 0) {
    const float* from = slices() + first + row_of<KIND>() * LINE + (at.thread & 15) * 2;
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
      float2 sums[WARPS];
#pragma unroll
      for (int slice = 0; slice < WARPS; slice++) sums[slice] = *(const float2*)(from + slice * 16 * LINE + pass * 32);
      // In pairs, so that few additions wait for each other.
#pragma unroll
      for (int step = 1; step < WARPS; step *= 2)
#pragma unroll
        for (int slice = 0; slice < WARPS; slice += 2 * step) sums[slice].x += sums[slice + step].x, sums[slice].y += sums[slice + step].y;
      value[pass] = sums[0];
    }
  }

  // Write two columns of a row, the first of them `inside` the block's.
  template <int KIND>
  DEVICE void write_columns(int layer, int part, const Units<width_of(KIND)>& units, int inside, float2 value) {
    constexpr int WIDTH = width_of(KIND);
    int row = at.rows + row_of<KIND>(), column = units.first * 8 + inside;
    uint32_t pair = pack(value.x, value.y);
    Element* output = buffers(layer) + (KIND == CROSS_OUT ? AFTER_CROSS : KIND == UP ? RAISED : AFTER_FF);
    Element* to = output + placed_input(row, column, WIDTH);
    if (KIND == KINDS) to = p.output + part * WIDTH + row * OUT + column;
    if (KIND == QKV) {
      output = buffers(layer), to = output + QUERY_KEYS + placed(row, column, 2 * HIDDEN);
      // Two rows of a column lie side by side among the values; the next row's thread is 16 lanes away.
      bool odd = row & 1;
      float other = warp_exchange(odd ? value.x : value.y, 16);
      if (column >= 2 * HIDDEN) {
        to = output + VALUES + placed_value(row - odd, column - 2 * HIDDEN + odd);
        pair = odd ? pack(other, value.y) : pack(value.x, other);
      }
    }
    if (column < units.last * 8 && (KIND != KINDS || row < QUERIES)) publish(to, pair);
  }

  // A layer's attention among the queries, or over the context.
  DEVICE void attend_in(int layer, bool self) {
    Element* own = buffers(layer);
    int head = at.share % HEADS, split = at.share / HEADS, total = p.vlm_tokens + p.dino_tokens, padded = divide_up(total, 32) * 32;
    int blocks = self ? KEY_BLOCKS : padded / 32, each = divide_up(blocks, self ? 1 : SPLITS);
    const Element *query = self ? own + QUERY_KEYS : layer ? own + QUERY : p.query;
    QueryNorm norm = {self || layer == 0 ? nullptr : (const float2*)(own + ROW_SUMS), columns_of<CROSS_ATTEND>(p, layer)};
    if (self) split = 0;
    const Element *keys = self ? query : exchange.keys_values + 2 * layer * padded * HIDDEN, *values = self ? own + VALUES : exchange.keys_values + (2 * layer + 1) * padded * HIDDEN;
    attend(at, shared, head * HEAD, query, norm, keys, self ? 2 * HIDDEN : HIDDEN, self ? HIDDEN : 0, values, split * each, min(blocks, (split + 1) * each),
           self ? QUERIES : min(p.dino_tokens + p.lengths[0], total), self ? ROWS : padded, self ? nullptr : own + PARTS + split * ROWS * HIDDEN,
           (float*)(own + LOGS) + head * 4 + split, layer ? INPUT_AHEAD : 0);
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
    int source = at.share >= HEADS ? at.share - HEADS + SELF_SOURCES / 2 : at.share;
    Element* to = parts_of(layer) + ((at.rows / 16 * TILES + at.warp) * 2 * SELF_SOURCES + source) * 128 + lane * 4;
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
  // make. A warp takes every eighth head, and multiplies its parts by a diagonal of ones, which takes fewer instructions than adding them.
  DEVICE void reduce(int layer) {
    Units<HIDDEN> units(at);
    int inside = (at.thread & 15) * 2, column = units.first * 8 + inside, to_row = at.rows + row_of<SELF_OUT>(), place = placed(to_row, column, HIDDEN);
    // Where the result goes is computed before the wait.
    renew(place);
    Element* from = parts_of(layer) + ((at.rows / 16 * (HIDDEN / 8) + units.first) * SELF_SOURCES + at.warp) * 128 + (at.thread & 31) * 4;
    auto part_at = [&](int i, int unit) { return from + (unit * SELF_SOURCES + i * WARPS) * 128; };
    auto exists = [&](int i, int unit) { return at.warp + i % HEADS_EACH * WARPS < HEADS && unit < units.last - units.first; };
    // Those of the query behind those of the residual.
    uint2 part[2 * HEADS_EACH][NARROW] = {};
    float2 bias[1], query_bias[1], value[1];
    load_columns(columns_of<SELF_OUT>(p, layer), units, bias, query_bias);
    bool first_time = true;
    await(SUM_AHEAD, [&] {
      uint32_t largest = 0;
#pragma unroll
      for (int i = 0; i < 2 * HEADS_EACH; i++)
#pragma unroll
        for (int unit = 0; unit < NARROW; unit++)
          if (exists(i, unit)) part[i][unit] = load_pair(part_at(i, unit));
      if (first_time) clearing.advance();
      first_time = false;
#pragma unroll
      for (int i = 0; i < 2 * HEADS_EACH; i++)
#pragma unroll
        for (int unit = 0; unit < NARROW; unit++) largest = max(largest, max(part[i][unit].x, part[i][unit].y));
      return largest;
    });
    stamp(p.stamps, 6 + 2 * (layer * KINDS + SELF_OUT));
    // Nobody else reads them.
#pragma unroll
    for (int i = 0; i < 2 * HEADS_EACH; i++)
#pragma unroll
      for (int unit = 0; unit < NARROW; unit++)
        if (exists(i, unit)) publish_four(part_at(i, unit), uint2{UNWRITTEN, UNWRITTEN});
    float sums[2][NARROW][4] = {};
    bool odd = at.group & 1;
    uint32_t diagonal = at.quad != at.group >> 1 ? 0 : odd ? pack(0, 1) : pack(1, 0);
#pragma unroll
    for (int i = 0; i < 2 * HEADS_EACH; i++)
#pragma unroll
      for (int unit = 0; unit < NARROW; unit++)
        multiply_add(sums[i >= HEADS_EACH][unit], diagonal, 0, 0, diagonal, part[i][unit].x, part[i][unit].y);
    keep_rows(at, sums[0], slices());
    keep_rows(at, sums[1], slices() + NARROW * 8);
    block_sync();
    add_slices<SELF_OUT>(value);
    residual = make_float2(residual.x + value[0].x + bias[0].x, residual.y + value[0].y + bias[0].y);
    bool own = column < units.last * 8;
    float2 squares = {0, 0};
    if (own) squares = make_float2(residual.x + residual.y, residual.x * residual.x + residual.y * residual.y);
    squares = half_warp_sum(squares);
    add_slices<SELF_OUT>(value, NARROW * 8);
    if (own) {
      float2 raw = *query_of(row_of<SELF_OUT>(), inside);
      publish(buffers(layer) + QUERY + place, pack(value[0].x + raw.x + query_bias[0].x, value[0].y + raw.y + query_bias[0].y));
    }
    if (inside == 0) {
      float2* to = (float2*)(buffers(layer) + ROW_SUMS) + to_row * GROUPS + at.share;
      publish_four(to, uint2{__float_as_uint(squares.x), __float_as_uint(squares.y)});
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
      else pause(self ? SELF_AHEAD : CROSS_AHEAD);
      if (self) {
        if (attends) wait_for_weights();
        // What is kept is there, and what the warps left has been read.
        block_sync();
        if (attends) scatter(layer);
        reduce(layer);
        fetch_next<SELF_OUT>(layer, 0);
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
