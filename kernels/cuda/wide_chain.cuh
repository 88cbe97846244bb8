// The chain of products and attentions on the queries.

__host__ __device__ constexpr int width_of(int kind) { return kind == QKV ? 3 * HIDDEN : kind == UP ? FF : kind == KINDS ? OUT : HIDDEN; }
__host__ __device__ constexpr bool has_norm(int kind) { return kind == QKV || kind == CROSS_QUERY || kind == UP || kind == KINDS; }

// Where a layer's step begins among biases and sums of columns; those of the first layer begin with CROSS_OUT.
__host__ __device__ constexpr int column_offset(int kind) {
  int offset = 0;
  for (int before = 0; before < kind; before++) offset += 2 * width_of(before);
  return offset;
}

// The same where it is not known when compiling, without a loop.
DEVICE int columns_at(int kind) {
  return kind == SELF_OUT ? column_offset(SELF_OUT) : kind == CROSS_QUERY ? column_offset(CROSS_QUERY) : kind == CROSS_OUT ? column_offset(CROSS_OUT) : kind == UP ? column_offset(UP) : 0;
}

// Where among a layer's buffers a product finds its input, the layer's before for QKV and the output, and leaves its result.
__host__ __device__ constexpr int input_of(int kind) {
  return kind == SELF_OUT ? MIXED : kind == CROSS_QUERY ? AFTER_SELF : kind == CROSS_OUT ? ATTENDED : kind == UP ? AFTER_CROSS : kind == DOWN ? RAISED : AFTER_FF - LAYER_EXCHANGE;
}
__host__ __device__ constexpr int output_of(int kind) {
  return kind == SELF_OUT ? AFTER_SELF : kind == CROSS_QUERY ? CONTEXT_QUERY : kind == CROSS_OUT ? AFTER_CROSS : kind == UP ? RAISED : AFTER_FF;
}

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
  float2 residual[NARROW_PARTS];  // of the thread's columns of what ends in HIDDEN columns
  int step;                       // of products; its parity says which place for biases and sums is meant

  DEVICE Element* buffers(int layer) const { return exchange.chain + (layer * LAYER_EXCHANGE - ATTENDED); }
  // What the warps leave of a pass, the wide ones in two places in turns.
  template <int UNITS>
  DEVICE float* slices(int pass) const { return (float*)(shared + SLICES_AT) + (UNITS == WIDE_PASS ? pass % 2 : 0) * (WARPS * 16 * line_of(UNITS)); }
  DEVICE float2* row_sums() const { return (float2*)(shared + SUMS_AT + (step & 1) * ROW_SUMS_BYTES); }
  DEVICE float* columns() const { return (float*)(shared + COLUMNS_AT + (step & 1) * COLUMNS_BYTES); }
  DEVICE int lane() const { return at.thread & 31; }
  // Of every 32 columns the two that a thread finishes.
  DEVICE int inside() const { return (at.thread & 15) * 2; }

  DEVICE void load_residual() {
    Share share(CROSS_OUT, at.share);
    int row = at.rows + at.paired_row();
#pragma unroll
    for (int part = 0; part < NARROW_PARTS; part++) {
      int column = share.first * 8 + part * 32 + inside();
      residual[part] = make_float2(0, 0);
      if (row < QUERIES && column < share.last * 8) residual[part] = *(const float2*)(p.hidden_states + row * HIDDEN + column);
    }
  }

  // The block's rows of x [ROWS, WIDTH] as fragments, once they are written; a warp has every eighth 32 of the places that the block contracts, which
  // begin at `first`.
  template <int DIM, int WIDTH, int BLOCKS>
  DEVICE void take(const Element* x, int first, uint4 (&a)[BLOCKS][2]) {
    const Element* from = x + at.rows * WIDTH + first * 16 + at.warp * 512 + lane() * 8;
    bool first_time = true;
    // A place too many of the axis.
    if (DIM / 32 < BLOCKS * WARPS) a[BLOCKS - 1][0] = a[BLOCKS - 1][1] = make_uint4(0, 0, 0, 0);
    await(INPUT_AHEAD, [&] {
#pragma unroll
      for (int i = 0; i < BLOCKS; i++)
        if ((i + 1) * WARPS <= DIM / 32 || at.warp + i * WARPS < DIM / 32)
#pragma unroll
          for (int half = 0; half < 2; half++) a[i][half] = load_fresh(from + half * 256 + i * WARPS * 512);
      if (first_time) clearing.advance();
      first_time = false;
      uint32_t largest = 0;
#pragma unroll
      for (int i = 0; i < BLOCKS; i++) largest = max(largest, max(largest_word(a[i][0]), largest_word(a[i][1])));
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
  DEVICE void multiply_units(const uint4 (&a)[BLOCKS][2], int count, float (&result)[UNITS][4]) {
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
        multiply_16(result[unit], a[i][0], b.x, b.y);
        multiply_16(result[unit], a[i][1], b.z, b.w);
      }
    }
    stream.turn += count;
  }

  // Leave the warp's part of all units as [WARPS, 16, line_of(UNITS)].
  template <int UNITS>
  DEVICE void keep_units(float* to, const float (&result)[UNITS][4]) {
    constexpr int LINE = line_of(UNITS);
    float* own = to + (at.warp * 16 + at.group) * LINE + at.quad * 2;
#pragma unroll
    for (int unit = 0; unit < UNITS; unit++) {
      *(float2*)(own + unit * 8) = make_float2(result[unit][0], result[unit][1]);
      *(float2*)(own + 8 * LINE + unit * 8) = make_float2(result[unit][2], result[unit][3]);
    }
  }

  // Add the warps' parts of the thread's columns of a row.
  template <int UNITS>
  DEVICE float2 add_slices(const float* slices, int row, int column) const {
    constexpr int LINE = line_of(UNITS);
    const float* from = slices + row * LINE + column;
    float2 sums[WARPS];
#pragma unroll
    for (int slice = 0; slice < WARPS; slice++) sums[slice] = *(const float2*)(from + slice * 16 * LINE);
    // In pairs, so that few additions wait for each other.
#pragma unroll
    for (int step = 1; step < WARPS; step *= 2)
#pragma unroll
      for (int slice = 0; slice < WARPS; slice += 2 * step) sums[slice].x += sums[slice + step].x, sums[slice].y += sums[slice + step].y;
    return sums[0];
  }

  // Mean and 1 / deviation of a row, of the sums [WARPS, 16] that the warps found.
  DEVICE float2* statistics_of(int row) const { return row_sums() + WARPS * 16 + row; }

  DEVICE void keep_statistics() {
    int row = at.thread - (THREADS - 16);
    if (row >= 0) *statistics_of(row) = row_statistics(row_sums(), row);
  }

  // A product, with the norm before it and GELU or the residual after it. It writes the next step's input: for QKV queries and keys
  // [ROWS, 2 HIDDEN] and values [HIDDEN, ROWS], else [ROWS, width]; of DOWN, parts; behind the last layer the output. What is alike shares its code,
  // that of CROSS_OUT or of UP: what does not fit the instruction cache is slow.
  template <int KIND>
  DEVICE void product(int layer, int kind) {
    constexpr int DIM = KIND == DOWN ? FF_SLICE : HIDDEN, BLOCKS = divide_up(DIM / 32, WARPS), UNITS = KIND == CROSS_QUERY || KIND == CROSS_OUT ? NARROW : WIDE_PASS;
    renew(at.share);
    Share share(kind, at.share);
    uint4 a[BLOCKS][2];
    if (KIND != DOWN) load_columns(p.columns + layer * column_offset(KINDS) + (columns_at(kind) - column_offset(CROSS_OUT)), width_of(kind), share);
    // What has nothing of DOWN takes an input too: where nothing is written, registers are kept for it through the other steps.
    take<DIM, KIND == DOWN ? FF : HIDDEN>(buffers(layer) + input_of(kind), min(share.slice, FF_SLICES - 1) * DIM, a);
    stamp(p.stamps, 6 + layer * LAYER_STAMPS + kind % KINDS * 2);
    if (has_norm(KIND)) sum_rows(at, a, row_sums());
    copy_wait<0>();
    int passes = divide_up(share.count(), UNITS);
    // Warps must not overtake each other by two steps.
    if (passes == 0) block_sync();
    // The sums of a pass are finished while the next one is multiplied.
#pragma unroll 1
    for (int pass = 0; passes > 0; pass++) {
      float result[UNITS][4] = {};
      if (pass < passes) multiply_units<DIM>(a, min(UNITS, share.count() - pass * UNITS), result);
      if (pass > 0) finish<KIND, UNITS>(layer, kind, share, pass - 1);
      if (pass == passes) break;
      // What the step before this has left there was read by all.
      if (pass == 0) block_sync();
      if (has_norm(KIND) && pass == 0) keep_statistics();
      keep_units(slices<UNITS>(pass), result);
      block_sync();
      stream.ask(at);
    }
    stamp(p.stamps, 7 + layer * LAYER_STAMPS + kind % KINDS * 2);
    step++;
  }

  // Of the sums of a pass the thread's columns.
  template <int KIND, int UNITS>
  DEVICE void finish(int layer, int kind, const Share& share, int pass) {
#pragma unroll
    for (int part = 0; part < divide_up(UNITS, 4); part++) {
      int among = pass * UNITS * 8 + part * 32 + inside(), column = share.first * 8 + among;
      // Values are written along the keys.
      bool values = kind == QKV && column >= 2 * HIDDEN;
      int row = values ? at.warp * 2 + (at.thread >> 4 & 1) : at.paired_row();
      float2 value = add_slices<UNITS>(slices<UNITS>(pass), row, part * 32 + inside());
      if (KIND != DOWN) {
        const float* own = columns() + min(among, WIDEST * 8 - 2);
        float2 bias = *(const float2*)own, sums = *(const float2*)(own + WIDEST * 8);
        float2 statistics = has_norm(KIND) ? *statistics_of(row) : make_float2(0, 1);
        value.x = statistics.y * (value.x - statistics.x * sums.x) + bias.x, value.y = statistics.y * (value.y - statistics.x * sums.y) + bias.y;
      }
      if (kind == UP) value = make_float2(gelu(value.x), gelu(value.y));
      if (KIND == CROSS_OUT) value = residual[part] = make_float2(residual[part].x + value.x, residual[part].y + value.y);
      write_columns<KIND>(layer, kind, share, row, column, part * 32 + inside() < UNITS * 8 && column < share.last * 8, value);
    }
  }

  // Write two columns of a row, if they are the block's.
  template <int KIND>
  DEVICE void write_columns(int layer, int kind, const Share& share, int row, int column, bool own, float2 value) {
    Element* output = buffers(layer);
    int to_row = at.rows + row;
    if (KIND == DOWN) {
      if (own) publish_four(part_of(layer, share.slice, column), uint2{__float_as_uint(value.x), __float_as_uint(value.y)});
      return;
    }
    uint32_t pair = pack(value.x, value.y);
    Element* to = output + (KIND == CROSS_QUERY ? CONTEXT_QUERY + placed(to_row, column, HIDDEN) : output_of(kind) + placed_input(to_row, column, KIND == UP ? FF : HIDDEN));
    if (kind == KINDS) to = p.output + to_row * OUT + column;
    if (kind == QKV) {
      to = output + QUERY_KEYS + placed(to_row, column, 2 * HIDDEN);
      // Two rows of a column lie side by side among the values; the next row's thread is 16 lanes away.
      bool odd = row & 1;
      float other = warp_exchange(odd ? value.x : value.y, 16);
      if (column >= 2 * HIDDEN) {
        to = output + VALUES + placed_value(to_row - odd, column - 2 * HIDDEN + odd);
        pair = odd ? pack(other, value.y) : pack(value.x, other);
      }
    }
    if (own && (kind != KINDS || to_row < QUERIES)) publish(to, pair);
  }

  // The thread's two sums of a slice of DOWN: [slices, ROWS / 16, 8, HIDDEN / 2] times two columns of rows r and r + 8.
  DEVICE float2* part_of(int layer, int slice, int column) const {
    return exchange.chain_parts + layer * LAYER_PARTS + (((slice * (ROWS / 16) + at.rows / 16) * 8 + at.warp) * (HIDDEN / 2) + column / 2) * 2 + (at.thread >> 4 & 1);
  }

  // The parts of DOWN, bias and residual.
  DEVICE void reduce(int layer) {
    Share share(CROSS_OUT, at.share);
    int first = share.first * 8 + inside();
    float2 bias[NARROW_PARTS] = {};
    uint2 sums[NARROW_PARTS][FF_SLICES] = {};
    auto own = [&](int part) { return first + part * 32 < share.last * 8; };
#pragma unroll
    for (int part = 0; part < NARROW_PARTS; part++)
      if (own(part)) bias[part] = *(const float2*)(p.columns + layer * column_offset(KINDS) + (column_offset(DOWN) - column_offset(CROSS_OUT)) + first + part * 32);
    await(SUM_AHEAD, [&] {
      uint32_t largest = 0;
#pragma unroll
      for (int part = 0; part < NARROW_PARTS; part++)
#pragma unroll
        for (int slice = 0; slice < FF_SLICES; slice++)
          if (own(part)) sums[part][slice] = load_pair(part_of(layer, slice, first + part * 32));
#pragma unroll
      for (int part = 0; part < NARROW_PARTS; part++)
#pragma unroll
        for (int slice = 0; slice < FF_SLICES; slice++) largest = max(largest, max(sums[part][slice].x, sums[part][slice].y));
      return largest;
    });
#pragma unroll
    for (int part = 0; part < NARROW_PARTS; part++) {
      if (!own(part)) continue;
      float2 value = {residual[part].x + bias[part].x, residual[part].y + bias[part].y};
#pragma unroll
      for (int slice = 0; slice < FF_SLICES; slice++) {
        // Nobody else reads them.
        publish_four(part_of(layer, slice, first + part * 32), uint2{UNWRITTEN, UNWRITTEN});
        value.x += __uint_as_float(sums[part][slice].x), value.y += __uint_as_float(sums[part][slice].y);
      }
      residual[part] = value;
      publish(buffers(layer) + AFTER_FF + placed_input(at.rows + at.paired_row(), first + part * 32, HIDDEN), pack(value.x, value.y));
    }
  }

  // A layer's attention among the queries, or over the context, of one head.
  DEVICE void attend_in(int layer, bool self) {
    Element* own = buffers(layer);
    int head = at.share, total = p.vlm_tokens + p.dino_tokens, padded = divide_up(total, 32) * 32;
    const Element *query = self ? own + QUERY_KEYS : layer ? own + CONTEXT_QUERY : p.query;
    const Element *keys = self ? query : exchange.keys_values + 2 * layer * padded * HIDDEN, *values = self ? own + VALUES : exchange.keys_values + (2 * layer + 1) * padded * HIDDEN;
    KeysValuesOf memory = {keys, values, self ? 2 * HIDDEN : HIDDEN, (self ? HIDDEN : 0) + head * HEAD, head * HEAD, self ? ROWS : padded};
    attend(at, shared, query, memory, self ? QUERIES : min(p.dino_tokens + p.lengths[0], total), own + (self ? MIXED : ATTENDED), layer ? INPUT_AHEAD : 0);
    stamp(p.stamps, 6 + layer * LAYER_STAMPS + 2 * KINDS + !self);
  }

  DEVICE void run() {
    // Half a layer at a time, so that both halves share the code of an attention, the second with the first step of the next layer.
#pragma unroll 1
    for (int half = 1; half < 2 * LAYERS; half++) {
      int layer = half / 2;
      bool self = half % 2 == 0;
      renew(at.share), renew(at.thread);
      if (at.share < HEADS) attend_in(layer, self);
      else pause(self ? SELF_AHEAD : CROSS_AHEAD);
      product<CROSS_OUT>(layer, self ? SELF_OUT : CROSS_OUT);
      if (self) product<CROSS_QUERY>(layer, CROSS_QUERY);
      if (self) continue;
#pragma unroll 1
      for (int turn = 0; turn < 2; turn++) {
        product<UP>(layer + turn, turn == 0 ? UP : layer + 1 < LAYERS ? QKV : KINDS);
        if (turn > 0) break;
        product<DOWN>(layer, DOWN);
        reduce(layer);
      }
    }
  }
};
