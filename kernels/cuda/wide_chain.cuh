// The chain of products and attentions on the queries.

__host__ __device__ constexpr int width_of(int kind) { return kind == QKV ? 3 * HIDDEN : kind == UP ? FF : kind == KINDS ? OUT : HIDDEN; }
__host__ __device__ constexpr int dim_of(int kind) { return kind == DOWN ? FF : HIDDEN; }
__host__ __device__ constexpr int slice_of(int kind) { return kind == DOWN ? FF_SLICE : HIDDEN; }
__host__ __device__ constexpr bool has_norm(int kind) { return kind == QKV || kind == CROSS_QUERY || kind == UP || kind == KINDS; }

// Where a layer's step begins among biases and sums of columns; those of the first layer begin with CROSS_OUT.
__host__ __device__ constexpr int column_offset(int kind) {
  int offset = 0;
  for (int before = 0; before < kind; before++) offset += 2 * width_of(before);
  return offset;
}

// Biases, behind them sums.
DEVICE const float* columns_of(const Parameters& p, int layer, int kind) {
  return p.columns + layer * column_offset(KINDS) + (column_offset(kind % KINDS) - column_offset(CROSS_OUT));
}

// Where among a layer's buffers a product finds its input, the layer's before for QKV and the output, and leaves its result.
__host__ __device__ constexpr int input_of(int kind) {
  return kind == SELF_OUT ? MIXED : kind == CROSS_QUERY ? AFTER_SELF : kind == CROSS_OUT ? ATTENDED : kind == UP ? AFTER_CROSS : kind == DOWN ? RAISED : AFTER_FF - LAYER_EXCHANGE;
}
__host__ __device__ constexpr int output_of(int kind) {
  return kind == SELF_OUT ? AFTER_SELF : kind == CROSS_QUERY ? CONTEXT_QUERY : kind == CROSS_OUT ? AFTER_CROSS : kind == UP ? RAISED : AFTER_FF;
}

// Makes the other set ready for the next launch, some of it in every step while answers are on their way.
struct Clearing {
  uint4 *next, *end;
  int each;
  DEVICE Clearing(const Exchange& other) {
    next = (uint4*)other.chain + block_index() * THREADS + thread_index();
    end = (uint4*)other.end;
    each = divide_up((int)(end - (uint4*)other.chain), GRID * THREADS * WAITS);
  }
  DEVICE void advance() {
#pragma unroll 1
    for (int i = 0; i < each && next < end; i++, next += GRID * THREADS) *next = make_uint4(UNWRITTEN, UNWRITTEN, UNWRITTEN, UNWRITTEN);
  }
  DEVICE void finish() {
    while (next < end) advance();
  }
};

// Stamps of a layer: two a product and one an attention.
constexpr int LAYER_STAMPS = 2 * KINDS + 2;
#ifdef STAMPS
static_assert(6 + LAYERS * LAYER_STAMPS + 1 < STAMPS, "stamps");
#endif

struct Chain {
  const Parameters& p;
  Place at;
  unsigned char* shared;
  const Exchange& exchange;
  Clearing clearing;
  Stream stream;
  float2 residual[2];  // two columns of two rows
  int step;            // of products; its parity says which place for biases and sums is meant

  DEVICE Element* buffers(int layer) const { return exchange.chain + (layer * LAYER_EXCHANGE - ATTENDED); }
  DEVICE float* slices() const { return (float*)(shared + SLICES_AT); }
  DEVICE float2* row_sums() const { return (float2*)(shared + SUMS_AT + (step & 1) * ROW_SUMS_BYTES); }
  DEVICE float* columns() const { return (float*)(shared + COLUMNS_AT + (step & 1) * COLUMNS_BYTES); }
  DEVICE int lane() const { return at.thread & 31; }

  // A thread finishes columns `inside` and `inside` + 1 of each pass, of two rows of tile `tile`.
  DEVICE int inside() const { return lane() % (PASS * 4) * 2; }
  DEVICE int tile() const { return lane() / (PASS * 4); }
  DEVICE int row() const { return tile() * 16 + at.warp; }

  DEVICE void load_residual() {
    Share share(CROSS_OUT, at.share);
    int column = share.first * 8 + inside();
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int to_row = at.rows + row() + half * 8;
      residual[half] = make_float2(0, 0);
      if (to_row < QUERIES && column < share.last * 8) residual[half] = *(const float2*)(p.hidden_states + to_row * HIDDEN + column);
    }
  }

  // The block's rows of x [ROWS, WIDTH] as fragments, once they are written; a warp has every eighth 32 of the places that the block contracts, which
  // begin at `first`.
  template <int DIM, int WIDTH, int BLOCKS>
  DEVICE void take(const Element* x, int first, uint4 (&a)[TALL][BLOCKS][2]) {
    const Element* from = x + at.rows * WIDTH + first * 16 + at.warp * 512 + lane() * 8;
    bool first_time = true;
    // A place too many of the axis.
    if (DIM / 32 < BLOCKS * WARPS)
#pragma unroll
      for (int tile = 0; tile < TALL; tile++) a[tile][BLOCKS - 1][0] = a[tile][BLOCKS - 1][1] = make_uint4(0, 0, 0, 0);
    await(INPUT_AHEAD, [&] {
#pragma unroll
      for (int tile = 0; tile < TALL; tile++)
#pragma unroll
        for (int i = 0; i < BLOCKS; i++)
          if ((i + 1) * WARPS <= DIM / 32 || at.warp + i * WARPS < DIM / 32)
#pragma unroll
            for (int half = 0; half < 2; half++) a[tile][i][half] = load_fresh(from + tile * 16 * WIDTH + half * 256 + i * WARPS * 512);
      if (first_time) clearing.advance();
      first_time = false;
      uint32_t largest = 0;
#pragma unroll
      for (int tile = 0; tile < TALL; tile++)
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) largest = max(largest, max(largest_word(a[tile][i][0]), largest_word(a[tile][i][1])));
      return largest;
    });
  }

  // Biases and sums of the block's columns come to shared memory while the input is awaited.
  DEVICE void load_columns(const float* from, int width, const Share& share) {
    int chunks = share.count() * 2;
#pragma unroll 1
    for (int i = at.thread; i < 2 * chunks; i += THREADS) {
      int part = i / chunks, chunk = i % chunks;
      copy_async(columns() + part * WIDEST * 8 + chunk * 4, from + part * width + share.first * 8 + chunk * 4, true);
    }
    copy_commit();
  }

  // The warp's slice of the contracted axis for the next `count` units, of UNITS at most: those too many are the last one again, and a place too many
  // of the axis meets zeros. Neither needs a branch.
  template <int DIM, int UNITS, int BLOCKS>
  DEVICE void multiply_units(const uint4 (&a)[TALL][BLOCKS][2], int count, float (&result)[UNITS][TALL][4]) {
    const uint4* weights[UNITS];
#pragma unroll
    for (int unit = 0; unit < UNITS; unit++) {
      int turn = stream.turn + min(unit, count - 1);
      stream.wait(turn);
      weights[unit] = (const uint4*)stream.slot(turn) + lane();
    }
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) {
      int block = min(at.warp + i * WARPS, DIM / 32 - 1) * 32;
#pragma unroll
      for (int unit = 0; unit < UNITS; unit++) {
        uint4 b = weights[unit][block];
#pragma unroll
        for (int tile = 0; tile < TALL; tile++) {
          multiply_16(result[unit][tile], a[tile][i][0], b.x, b.y);
          multiply_16(result[unit][tile], a[tile][i][1], b.z, b.w);
        }
      }
    }
    stream.turn += count;
  }

  // Leave the warp's part of all units as [WARPS, BLOCK_ROWS, LINE].
  template <int UNITS>
  DEVICE void keep_units(const float (&result)[UNITS][TALL][4]) {
#pragma unroll
    for (int tile = 0; tile < TALL; tile++) {
      float* own = slices() + (at.warp * BLOCK_ROWS + tile * 16 + at.group) * LINE + at.quad * 2;
#pragma unroll
      for (int unit = 0; unit < UNITS; unit++) {
        *(float2*)(own + unit * 8) = make_float2(result[unit][tile][0], result[unit][tile][1]);
        *(float2*)(own + 8 * LINE + unit * 8) = make_float2(result[unit][tile][2], result[unit][tile][3]);
      }
    }
  }

  // Add the warps' parts of the thread's columns of a row.
  DEVICE float2 add_slices(int row) const {
    const float* from = slices() + row * LINE + inside();
    float2 sums[WARPS];
#pragma unroll
    for (int slice = 0; slice < WARPS; slice++) sums[slice] = *(const float2*)(from + slice * BLOCK_ROWS * LINE);
#pragma unroll
    for (int step = 1; step < WARPS; step *= 2)
#pragma unroll
      for (int slice = 0; slice < WARPS; slice += 2 * step) sums[slice].x += sums[slice + step].x, sums[slice].y += sums[slice + step].y;
    return sums[0];
  }

  // Mean and 1 / deviation of a row, of the sums [TALL, WARPS, 16] that the warps found.
  DEVICE float2* statistics_of(int row) const { return row_sums() + WARPS * BLOCK_ROWS + row; }

  DEVICE void keep_statistics() {
    int row = at.thread - (THREADS - BLOCK_ROWS);
    if (row >= 0) *statistics_of(row) = row_statistics(row_sums() + row / 16 * WARPS * 16, row % 16);
  }

  // A product, with the norm before it and GELU or the residual after it. It writes the next step's input: for QKV queries and keys
  // [ROWS, 2 HIDDEN] and values [HIDDEN, ROWS], else [ROWS, width]; of DOWN, parts; behind the last layer the output. CROSS_OUT serves
  // as SELF_OUT too.
  template <int KIND>
  DEVICE void product(int layer, bool self = false) {
    constexpr int DIM = slice_of(KIND), BLOCKS = divide_up(DIM / 32, WARPS);
    constexpr int UNITS = width_of(KIND) == HIDDEN && KIND != DOWN ? NARROW : WIDE_PASS;
    int kind = KIND == CROSS_OUT && self ? SELF_OUT : KIND;
    renew(at.share);
    Share share(KIND, at.share);
    uint4 a[TALL][BLOCKS][2];
    if (KIND != DOWN) load_columns(self ? columns_of(p, layer, SELF_OUT) : columns_of(p, layer, KIND), width_of(KIND), share);
    // Some have nothing of DOWN.
    if (KIND != DOWN || share.count() > 0) take<DIM, dim_of(KIND)>(buffers(layer) + input_of(kind), share.slice * DIM, a);
    else clearing.advance();
    stamp(p.stamps, 6 + layer * LAYER_STAMPS + kind % KINDS * 2);
    if (has_norm(KIND))
#pragma unroll
      for (int tile = 0; tile < TALL; tile++) sum_rows(at, a[tile], row_sums() + tile * WARPS * 16);
    copy_wait<0>();
#pragma unroll 1
    for (int first = share.first; first < share.last; first += UNITS) {
      float result[UNITS][TALL][4] = {};
      multiply_units<DIM>(a, min(UNITS, share.last - first), result);
      // What the pass before this has left there was read by all.
      block_sync();
      if (has_norm(KIND) && first == share.first) keep_statistics();
      keep_units(result);
      block_sync();
      stream.ask(at);
      finish<KIND>(layer, kind, share, first * 8, UNITS * 8);
    }
    stamp(p.stamps, 7 + layer * LAYER_STAMPS + kind % KINDS * 2);
    step++;
  }

  // Of a product's sums the thread's two columns, among `width` from `first` on.
  template <int KIND>
  DEVICE void finish(int layer, int kind, const Share& share, int first, int width) {
    int column = first + inside();
    bool values = KIND == QKV && column >= 2 * HIDDEN;
    // Values are written along the keys, and a fragment has rows r and r + 8.
    int rows[2] = {values ? tile() * 16 + at.warp * 2 : row(), values ? tile() * 16 + at.warp * 2 + 1 : row() + 8};
    float2 value[2], bias, sums;
    if (KIND != DOWN) {
      const float* own = columns() + min(column - share.first * 8, WIDEST * 8 - 2);
      bias = *(const float2*)own, sums = *(const float2*)(own + WIDEST * 8);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      value[half] = add_slices(rows[half]);
      if (has_norm(KIND)) {
        float2 statistics = *statistics_of(rows[half]);
        value[half].x = statistics.y * (value[half].x - statistics.x * sums.x), value[half].y = statistics.y * (value[half].y - statistics.x * sums.y);
      }
      if (KIND != DOWN) value[half].x += bias.x, value[half].y += bias.y;
      if (KIND == UP) value[half] = make_float2(gelu(value[half].x), gelu(value[half].y));
      if (KIND == CROSS_OUT) value[half] = residual[half] = make_float2(residual[half].x + value[half].x, residual[half].y + value[half].y);
    }
    if (inside() >= width || column >= share.last * 8) return;
    if (KIND == DOWN) publish_eight(part_of(layer, share.slice, column), as_words(value[0].x, value[0].y, value[1].x, value[1].y));
    else write_columns<KIND>(layer, kind, values, rows, column, value);
  }

  template <int KIND>
  DEVICE void write_columns(int layer, int kind, bool values, const int (&rows)[2], int column, const float2 (&value)[2]) {
    constexpr int WIDTH = width_of(KIND);
    Element* own = buffers(layer);
    uint2 pairs = {pack(value[0].x, value[0].y), pack(value[1].x, value[1].y)};
    int to_rows[2] = {at.rows + rows[0], at.rows + rows[1]};
    if (values) {
      Element* to = own + VALUES + placed_value(to_rows[0], column - 2 * HIDDEN);
      publish(to, pack(value[0].x, value[1].x));
      publish(to + 32, pack(value[0].y, value[1].y));
    } else if (KIND == QKV || KIND == CROSS_QUERY) {
      // Read by an attention.
      constexpr int LINES = KIND == QKV ? 2 * HIDDEN : HIDDEN;
      Element* to = own + (KIND == QKV ? QUERY_KEYS : CONTEXT_QUERY);
      publish(to + placed(to_rows[0], column, LINES), pairs.x);
      publish(to + placed(to_rows[1], column, LINES), pairs.y);
    } else if (KIND == KINDS) {
      if (to_rows[0] < QUERIES) publish(p.output + to_rows[0] * OUT + column, pairs.x);
      if (to_rows[1] < QUERIES) publish(p.output + to_rows[1] * OUT + column, pairs.y);
    } else {
      publish_four(own + output_of(kind) + placed_input(to_rows[0], column, WIDTH), pairs);
    }
  }

  // A thread's part of a slice of DOWN: [slices, ROWS / 16, 8, HIDDEN / 2] times two columns of two rows.
  DEVICE uint4* part_of(int layer, int slice, int column) const {
    return exchange.chain_parts + layer * LAYER_PARTS + ((slice * (ROWS / 16) + at.rows / 16 + tile()) * 8 + at.warp) * (HIDDEN / 2) + column / 2;
  }

  // The parts of DOWN, bias and residual.
  DEVICE void reduce(int layer) {
    Share share(CROSS_OUT, at.share);
    int column = share.first * 8 + inside();
    bool own = column < share.last * 8;
    float2 bias = {0, 0};
    if (own) bias = *(const float2*)(columns_of(p, layer, DOWN) + column);
    uint4 part[FF_SLICES] = {};
    await(SUM_AHEAD, [&] {
      uint32_t largest = 0;
#pragma unroll
      for (int slice = 0; slice < FF_SLICES; slice++)
        if (own) part[slice] = load_fresh(part_of(layer, slice, column));
#pragma unroll
      for (int slice = 0; slice < FF_SLICES; slice++) largest = max(largest, largest_word(part[slice]));
      return largest;
    });
    if (!own) return;
#pragma unroll
    for (int slice = 0; slice < FF_SLICES; slice++) {
      // Nobody else reads them.
      publish_eight(part_of(layer, slice, column), make_uint4(UNWRITTEN, UNWRITTEN, UNWRITTEN, UNWRITTEN));
      residual[0].x += __uint_as_float(part[slice].x), residual[0].y += __uint_as_float(part[slice].y);
      residual[1].x += __uint_as_float(part[slice].z), residual[1].y += __uint_as_float(part[slice].w);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) residual[half].x += bias.x, residual[half].y += bias.y;
    uint2 pairs = {pack(residual[0].x, residual[0].y), pack(residual[1].x, residual[1].y)};
    publish_four(buffers(layer) + AFTER_FF + placed_input(at.rows + row(), column, HIDDEN), pairs);
  }

  // A layer's attention among the queries, or over the context: a head and 16 of the block's rows.
  DEVICE void attend_in(int layer, bool self) {
    Element* own = buffers(layer);
    int head = at.share % HEADS, total = p.vlm_tokens + p.dino_tokens, padded = divide_up(total, 32) * 32;
    Place place = at;
    place.rows += at.share / HEADS * 16;
    const Element *query = self ? own + QUERY_KEYS : layer ? own + CONTEXT_QUERY : p.query;
    const Element *keys = self ? query : exchange.keys_values + 2 * layer * padded * HIDDEN, *values = self ? own + VALUES : exchange.keys_values + (2 * layer + 1) * padded * HIDDEN;
    attend(place, shared, head * HEAD, query, QueryNorm{nullptr, nullptr}, keys, self ? 2 * HIDDEN : HIDDEN, self ? HIDDEN : 0, values, 0, self ? KEY_BLOCKS : padded / 32,
           self ? QUERIES : min(p.dino_tokens + p.lengths[0], total), self ? ROWS : padded, nullptr, nullptr, layer ? INPUT_AHEAD : 0);
    block_sync();
    int column = lane() * 2;
    uint2 pairs = {*(const uint32_t*)kept_of(shared, at.warp, column), *(const uint32_t*)kept_of(shared, at.warp + 8, column)};
    publish_four(own + (self ? MIXED : ATTENDED) + placed_input(place.rows + at.warp, head * HEAD + column, HIDDEN), pairs);
    stamp(p.stamps, 6 + layer * LAYER_STAMPS + 2 * KINDS + !self);
  }

  DEVICE void run() {
    // Half a layer at a time, so that both halves share the code of an attention: what does not fit the instruction cache is slow.
#pragma unroll 1
    for (int half = 1; half < 2 * LAYERS; half++) {
      int layer = half / 2;
      bool self = half % 2 == 0;
      renew(at.share), renew(at.thread);
      if (self) product<QKV>(layer);
      if (at.share < HEADS * TALL) attend_in(layer, self);
      else pause(self ? SELF_AHEAD : CROSS_AHEAD);
      product<CROSS_OUT>(layer, self);
      if (self) {
        product<CROSS_QUERY>(layer);
      } else {
        product<UP>(layer);
        product<DOWN>(layer);
        reduce(layer);
      }
    }
    product<KINDS>(LAYERS);
  }
};
