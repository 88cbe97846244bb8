// The chain of products and attentions on the queries.

__host__ __device__ constexpr bool has_norm(int kind) { return kind == QKV || kind == CROSS_QUERY || kind == UP || kind == KINDS; }

// Where a layer's step begins among biases and sums of columns; those of the first layer begin with CROSS_OUT.
__host__ __device__ constexpr int column_offset(int kind) {
  int offset = 0;
  for (int before = 0; before < kind; before++) offset += 2 * width_of(before);
  return offset;
}

// The same where it is not known when compiling, without a loop.
DEVICE int columns_at(int kind) {
  int offset = kind == SELF_OUT ? column_offset(SELF_OUT) : kind == CROSS_QUERY ? column_offset(CROSS_QUERY) : 0;
  return kind == CROSS_OUT ? column_offset(CROSS_OUT) : kind == UP ? column_offset(UP) : offset;
}

// Where among a layer's buffers a product finds its input, the layer's before for QKV and the output, and leaves its result.
__host__ __device__ constexpr int input_of(int kind) {
  int input = kind == SELF_OUT ? MIXED : kind == CROSS_QUERY ? AFTER_SELF : AFTER_FF - LAYER_EXCHANGE;
  return kind == CROSS_OUT ? ATTENDED : kind == UP ? AFTER_CROSS : kind == DOWN ? RAISED : input;
}
__host__ __device__ constexpr int output_of(int kind) {
  return kind == SELF_OUT ? AFTER_SELF : kind == CROSS_QUERY ? CONTEXT_QUERY : kind == CROSS_OUT ? AFTER_CROSS : kind == UP ? RAISED : AFTER_FF;
}

// Stamps of a layer: two a product and one an attention.
constexpr int LAYER_STAMPS = 2 * KINDS + 2;
#ifdef STAMPS
static_assert(6 + LAYERS * LAYER_STAMPS + 1 < STAMPS, "stamps");
#endif

// A warp has every eighth 32 places of the contracted axis, of which a step multiplies 16; where half of the warps or fewer find some more, every warp has
// one step of these.
constexpr int PLACES = HIDDEN / 32, WHOLE_STEPS = 2 * (PLACES / WARPS + (PLACES % WARPS > WARPS / 2)), STEPS = WHOLE_STEPS + (PLACES > WHOLE_STEPS / 2 * WARPS);

struct Chain {
  const Parameters& p;
  Place at;
  unsigned char* shared;
  const Exchange& exchange;
  Clearing clearing;
  Stream stream;
  int key_count;    // of the context, that take part
  float4 residual;  // of what ends in HIDDEN columns, of the warp's unit, two columns of rows `group` and `group` + 8
  int turns;        // a bit each: whether the products, passes and times that warps left so far are odd in number

  enum Turn { PRODUCT, PASS, LEAVE };
  DEVICE int odd(Turn turn) const { return turns >> turn & 1; }
  DEVICE void next(Turn turn) { turns ^= 1 << turn; }

  DEVICE Element* buffers(int layer) const { return exchange.chain + (layer * LAYER_EXCHANGE - ATTENDED); }
  // What the warps leave of a pass, [jobs, WARPS, lanes]; a job is a unit of a tile, and a warp finishes one.
  DEVICE uint2* slices(int odd) const { return (uint2*)(shared + SLICES_AT) + odd * (WARPS * WARPS * 32); }
  DEVICE float2* row_sums() const { return (float2*)(shared + SUMS_AT + odd(PRODUCT) * ROW_SUMS_BYTES); }
  DEVICE float* columns() const { return (float*)(shared + COLUMNS_AT + odd(PRODUCT) * COLUMNS_BYTES); }
  DEVICE int lane() const { return at.thread & 31; }

  // What follows from where a thread is takes registers of all steps if it is found but once.
  DEVICE void renew_place() { renew(at.thread), renew(at.warp), renew(at.group), renew(at.quad), renew(at.rows), renew(at.share); }

  DEVICE void load_residual() {
    Share share = stream.share(CROSS_OUT);
    int column = (share.first + at.warp) * 8 + at.quad * 2, row = at.rows + at.group;
    auto pair = [&](int row) {
      bool own = row < QUERIES && at.warp < share.count();
      return own ? *(const float2*)(p.hidden_states + row * HIDDEN + column) : make_float2(0, 0);
    };
    float2 upper = pair(row), lower = pair(row + 8);
    residual = {upper.x, upper.y, lower.x, lower.y};
  }

  // Which tile of rows is number `tile` of those that a block has of a product.
  template <bool WIDE>
  DEVICE int tile_of(int tile) const { return WIDE ? block_index() % WIDE_TILES * 2 + tile : at.rows / 16; }

  // Which 32 places of the contracted axis a step multiplies, behind those of the steps before: with two whole steps a warp has both halves of them, with
  // the last one either.
  DEVICE static constexpr int blocks_before(int step) { return step / 2 * WARPS; }
  DEVICE int block_of(int step) const { return blocks_before(step) + (step < WHOLE_STEPS ? at.warp : at.warp / 2); }

  // The block's rows of x [ROWS, width] as fragments, once they are written, zeros where there are none: of `places` of them, from `first` on.
  template <bool WIDE, int TILES>
  DEVICE void take(const Element* x, int width, int first, int places, uint4 (&a)[TILES][STEPS]) {
    bool first_time = true;
    const Element *whole[TILES], *last[TILES];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
      const Element* rows = x + tile_of<WIDE>(tile) * (16 * width) + first * 16 + lane() * 8;
      whole[tile] = settled(rows + at.warp * 512), last[tile] = settled(rows + at.warp * 256);
#pragma unroll
      for (int step = 0; step < STEPS; step++) {
        bool there = (step < WHOLE_STEPS && (blocks_before(step) + WARPS) * 32 <= smaller(HIDDEN, FF_SLICE)) || block_of(step) * 32 < places;
        uint32_t word = there && tile_of<WIDE>(tile) < ROW_TILES ? UNWRITTEN : 0;
        a[tile][step] = make_uint4(word, word, word, word);
      }
    }
    await_at_work(INPUT_AHEAD, [&] {
#pragma unroll
      for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int step = 0; step < STEPS; step++)
          load_missing(a[tile][step], step < WHOLE_STEPS ? whole[tile] + blocks_before(step) * 512 + step % 2 * 256 : last[tile] + blocks_before(step) * 512);
      if (first_time) clearing.advance();
      first_time = false;
      uint32_t largest = 0;
#pragma unroll
      for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int step = 0; step < STEPS; step++) largest = max(largest, largest_word(a[tile][step]));
      return largest;
    });
  }

  // Biases and sums of the block's columns come to shared memory while the input is awaited.
  DEVICE void load_columns(const float* from, int width, const Share& share) {
    int chunks = share.count() * 2;
#pragma unroll 1
    for (int i = at.thread; i < 2 * chunks; i += THREADS) {
      int part = i >= chunks, chunk = i - part * chunks;
      copy_async(columns() + part * WIDEST * 8 + chunk * 4, from + part * width + share.first * 8 + chunk * 4, true);
    }
    copy_commit();
  }

  // Leave the warp's part of the next `count` units, of UNITS at most, over its slice of the contracted axis: those too many are the last one again, and a
  // place too many of the axis meets zeros. Neither needs a branch. Of wide products, which take several passes, the warp's job of the pass before is added
  // up meanwhile, whatever that is of the first one.
  template <int UNITS, int TILES>
  DEVICE void multiply_units(const uint4 (&a)[TILES][STEPS], int count, bool first, float (&before)[4]) {
    stream.wait(lane(), count);
    const unsigned char* units[UNITS];
#pragma unroll
    for (int unit = 0; unit < UNITS; unit++) units[unit] = stream.slot(stream.position.after(min(unit, count - 1))) + lane() * 16;
    float sums[TILES][UNITS][4] = {};
#pragma unroll
    for (int step = 0; step < STEPS; step += 2) {
      // Known not to be too many, it is a part of the instruction that loads.
      int block = blocks_before(step) + WARPS <= PLACES ? block_of(step) : min(block_of(step), PLACES - 1);
#pragma unroll
      for (int unit = 0; unit < UNITS; unit++) {
        const unsigned char* from = units[unit] + block * 512 + (step < WHOLE_STEPS ? 0 : at.warp % 2 * 8);
        uint4 b = {};
        if (step < WHOLE_STEPS) b = *(const uint4*)from;
        else b.x = ((const uint2*)from)->x, b.y = ((const uint2*)from)->y;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
          multiply_16(sums[tile][unit], a[tile][step], b.x, b.y);
          if (step < WHOLE_STEPS) multiply_16(sums[tile][unit], a[tile][min(step + 1, STEPS - 1)], b.z, b.w);
        }
      }
      // As many of them with each two steps.
      constexpr int PAIRS = WARPS / 2, TURNS = divide_up(STEPS, 2);
#pragma unroll
      for (int pair = step / 2 * PAIRS / TURNS; pair < (step / 2 + 1) * PAIRS / TURNS; pair++)
        if (TILES > 1) add_pair(before, pair);
    }
    // What an attention has left there was read by all.
    if (first) wait_left();
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
      for (int unit = 0; unit < UNITS; unit++) slices(odd(PASS))[((tile * WIDE_PASS + unit) * WARPS + at.warp) * 32 + lane()] = slice_of(sums[tile][unit]);
  }

  // Of rows that end in HIDDEN columns the blocks that make them leave sums and sums of squares, [tiles, GROUPS, 16], behind the rows: what the norm before
  // the next product needs.
  DEVICE float2* sums_of(Element* rows, int tile, int share) const { return (float2*)(rows + ROWS * HIDDEN) + (tile * GROUPS + share) * 16; }

  // What the norm needs of the rows, [TILES, 16, WARPS], a warp of every eighth block.
  template <bool WIDE>
  DEVICE void take_sums(Element* rows) {
    constexpr int TILES = WIDE ? 2 : 1, SHARES = divide_up(GROUPS, WARPS);
    int row = lane() % 16, tile = WIDE ? lane() / 16 : 0;
    bool there = tile_of<WIDE>(tile) < ROW_TILES;
    const float2* from = sums_of(rows, tile_of<WIDE>(tile), at.warp) + row;
    uint2 parts[SHARES];
#pragma unroll
    for (int i = 0; i < SHARES; i++) parts[i].x = parts[i].y = there && at.warp + i * WARPS < GROUPS ? UNWRITTEN : 0;
    await_at_work(0, [&] {
      uint32_t largest = 0;
#pragma unroll
      for (int i = 0; i < SHARES; i++)
        if (max(parts[i].x, parts[i].y) == UNWRITTEN) parts[i] = load_pair(from + i * (WARPS * 16));
#pragma unroll
      for (int i = 0; i < SHARES; i++) largest = max(largest, max(parts[i].x, parts[i].y));
      return largest;
    });
    float2 sum = {0, 0};
#pragma unroll
    for (int i = 0; i < SHARES; i++) sum.x += __uint_as_float(parts[i].x), sum.y += __uint_as_float(parts[i].y);
    if (lane() < 16 * TILES) row_sums()[(tile * 16 + row) * WARPS + at.warp] = sum;
  }

  // Leave the sums of the block's columns of `rows`, of which a warp has a unit, or none: `residual`.
  DEVICE void leave_sums(Element* rows, const Share& share) {
    float2* parts = (float2*)(shared + SUM_PARTS_AT);
    float2 upper = {residual.x + residual.y, residual.x * residual.x + residual.y * residual.y};
    float2 lower = {residual.z + residual.w, residual.z * residual.z + residual.w * residual.w};
    upper = {quad_sum(upper.x), quad_sum(upper.y)}, lower = {quad_sum(lower.x), quad_sum(lower.y)};
    if (at.quad == 0) parts[at.warp * 16 + at.group] = upper, parts[at.warp * 16 + at.group + 8] = lower;
    leave();
    if (at.warp < WARPS - 1 || at.share >= GROUPS) return;
    wait_left();
    float2 sum = {0, 0};
#pragma unroll
    for (int unit = 0; unit < NARROW; unit++) {
      float2 part = parts[unit * 16 + lane() % 16];
      if (unit < share.count()) sum.x += part.x, sum.y += part.y;
    }
    if (lane() < 16) publish_four(sums_of(rows, at.rows / 16, at.share) + lane(), uint2{__float_as_uint(sum.x), __float_as_uint(sum.y)});
  }

  // Counts the warps that have left what others wait for, or have read what others write over.
  DEVICE uint64_t* left() const { return (uint64_t*)(shared + LEFT_AT); }
  DEVICE void leave() {
    warp_sync();
    if (lane() == 0) arrive(left());
    next(LEAVE);
  }
  // For the last time that the warp itself has left; at once where there was none.
  DEVICE void wait_left() const { wait_for_arrival(left(), !odd(LEAVE)); }

  // Add what two warps left of the job of this one in the last pass.
  DEVICE void add_pair(float (&sum)[4], int pair) const { add_two(at, sum, slices(!odd(PASS)) + (at.warp * WARPS + pair * 2) * 32 + lane()); }

  // A product, with the norm before it and GELU or the residual after it. It writes the next step's input: for QKV queries and keys
  // [ROWS, 2 HIDDEN] and values [HIDDEN, ROWS], else [ROWS, width]; of DOWN, parts; behind the last layer the output. All wide ones share their code,
  // and all others: what does not fit the instruction cache is slow.
  template <bool WIDE>
  DEVICE void product(int layer, int kind) {
    constexpr int UNITS = WIDE ? WIDE_PASS : NARROW, TILES = WIDE ? 2 : 1;
    renew_place();
    bool norm = has_norm(kind);
    Share share = stream.share(kind);
    uint4 a[TILES][STEPS];
    Element* input = buffers(layer) + input_of(kind);
    if (kind != DOWN) load_columns(p.columns + layer * column_offset(KINDS) + (columns_at(kind) - column_offset(CROSS_OUT)), width_of(kind), share);
    take<WIDE>(input, kind == DOWN ? FF : HIDDEN, min(share.slice, FF_SLICES - 1) * FF_SLICE, kind == DOWN ? FF_SLICE : HIDDEN, a);
    stamp(p.stamps, 6 + layer * LAYER_STAMPS + kind % KINDS * 2);
    // Mean and 1 / deviation of the two rows of the warp's tile.
    float2 statistics[2] = {{0, 1}, {0, 1}};
    // Warps must not overtake each other by two steps.
    if (share.count() == 0) block_sync();
    // A pass is finished while the next one is multiplied, the last one alone.
#pragma unroll 1
    for (int first = 0; share.count() > 0; first += UNITS) {
      int count = min(UNITS, share.count() - first);
      float before[4] = {};
      if (count > 0) {
        // The last pass is often a short one.
        if (WIDE && count <= UNITS / 2) multiply_units<larger(UNITS / 2, 1)>(a, count, first == 0, before);
        else multiply_units<UNITS>(a, count, first == 0, before);
        if (first == 0 && norm) take_sums<WIDE>(input);
        if (first == 0) copy_wait<0>();
        block_sync();
        stream.advance(at, count);
        next(PASS);
      } else {
        // In two sums, so that few products wait for each other.
        float other[4] = {};
#pragma unroll
        for (int pair = 0; pair < WARPS / 2; pair++) add_pair(pair % 2 ? other : before, pair);
#pragma unroll
        for (int i = 0; i < 4; i++) before[i] += other[i];
      }
      // What finishing needs of where a thread is is found anew: there are no registers for it.
      renew_place();
      int unit = first - UNITS + (WIDE ? at.warp % WIDE_PASS : at.warp), tile = tile_of<WIDE>(WIDE ? at.warp / WIDE_PASS : 0);
      if (first > 0 && unit < share.count() && tile < ROW_TILES) finish<WIDE>(layer, kind, share, unit, tile, statistics, before);
      if (count <= 0) break;
      if (first == 0 && norm)
#pragma unroll
        for (int half = 0; half < 2; half++)
          statistics[half] = row_statistics(at, row_sums() + (WIDE ? at.warp / WIDE_PASS * 16 * WARPS : 0), at.group + half * 8);
    }
    if (!WIDE && kind != CROSS_QUERY) leave_sums(buffers(layer) + output_of(kind), share);
    stamp(p.stamps, 7 + layer * LAYER_STAMPS + kind % KINDS * 2);
    next(PRODUCT);
  }

  // A unit of a tile, number `unit` of the block's, of which `sum` are two columns of rows `group` and `group` + 8.
  template <bool WIDE>
  DEVICE void finish(int layer, int kind, const Share& share, int unit, int tile, const float2 (&statistics)[2], const float (&sum)[4]) {
    float4 value = {sum[0], sum[1], sum[2], sum[3]};
    int column = (share.first + unit) * 8;
    if (WIDE && kind == DOWN) return publish_eight(part_of(layer, share.slice, tile, share.first + unit), as_words(value.x, value.y, value.z, value.w));
    const float* own = columns() + unit * 8 + at.quad * 2;
    float2 bias = *(const float2*)own, sums = *(const float2*)(own + WIDEST * 8);
    value.x = statistics[0].y * (value.x - statistics[0].x * sums.x) + bias.x, value.y = statistics[0].y * (value.y - statistics[0].x * sums.y) + bias.y;
    value.z = statistics[1].y * (value.z - statistics[1].x * sums.x) + bias.x, value.w = statistics[1].y * (value.w - statistics[1].x * sums.y) + bias.y;
    if (WIDE && kind == UP) value = {gelu(value.x), gelu(value.y), gelu(value.z), gelu(value.w)};
    if (!WIDE && kind != CROSS_QUERY) value = residual = {residual.x + value.x, residual.y + value.y, residual.z + value.z, residual.w + value.w};
    uint2 rows = {pack(value.x, value.y), pack(value.z, value.w)};
    Element* output = buffers(layer) + output_of(kind);
    int row = tile * 16 + at.group, own_column = column + at.quad * 2;
    if (WIDE ? kind == UP : kind != CROSS_QUERY) return publish_four(output + placed_input(row, own_column, WIDE ? FF : HIDDEN), rows);
    // How much further the row `group` + 8 is.
    int below = 8 * 32;
    Element* to = output + placed(row, own_column, HIDDEN);
    if (WIDE && kind == QKV) {
      to = buffers(layer) + QUERY_KEYS + placed(row, own_column, 2 * HIDDEN);
      // Values are written along the keys: the lane then has a column and two rows.
      if (column >= 2 * HIDDEN) {
        rows = {transposed(rows.x), transposed(rows.y)};
        to = buffers(layer) + VALUES + placed_value(tile * 16 + at.quad * 2, column - 2 * HIDDEN + at.group), below = 8;
      }
    }
    if (WIDE && kind == KINDS) to = p.output + row * OUT + own_column, below = 8 * OUT;
    if (kind != KINDS || row < QUERIES) publish(to, rows.x);
    if (kind != KINDS || row + 8 < QUERIES) publish(to + below, rows.y);
  }

  // The lane's sums of a slice of DOWN: [slices, tiles, units, lanes].
  DEVICE uint4* part_of(int layer, int slice, int tile, int unit) const {
    return exchange.chain_parts + ((layer * FF_SLICES + slice) * ROW_TILES + tile) * (HIDDEN / 8 * 32) + unit * 32 + lane();
  }

  // The parts of DOWN, bias and residual.
  DEVICE void reduce(int layer) {
    Share share = stream.share(CROSS_OUT);
    int unit = share.first + at.warp, column = unit * 8 + at.quad * 2;
    Element* output = buffers(layer) + AFTER_FF;
    if (at.warp < share.count()) {
      float2 bias = *(const float2*)(p.columns + layer * column_offset(KINDS) + (column_offset(DOWN) - column_offset(CROSS_OUT)) + column);
      uint4* from = part_of(layer, 0, at.rows / 16, unit);
      constexpr int SLICE = ROW_TILES * (HIDDEN / 8 * 32);
      uint4 sums[FF_SLICES];
#pragma unroll
      for (int slice = 0; slice < FF_SLICES; slice++) sums[slice] = make_uint4(UNWRITTEN, UNWRITTEN, UNWRITTEN, UNWRITTEN);
      await_at_work(SUM_AHEAD, [&] {
        uint32_t largest = 0;
#pragma unroll
        for (int slice = 0; slice < FF_SLICES; slice++) load_missing(sums[slice], from + slice * SLICE);
#pragma unroll
        for (int slice = 0; slice < FF_SLICES; slice++) largest = max(largest, largest_word(sums[slice]));
        return largest;
      });
      residual.x += bias.x, residual.y += bias.y, residual.z += bias.x, residual.w += bias.y;
#pragma unroll
      for (int slice = 0; slice < FF_SLICES; slice++) {
        residual.x += __uint_as_float(sums[slice].x), residual.y += __uint_as_float(sums[slice].y);
        residual.z += __uint_as_float(sums[slice].z), residual.w += __uint_as_float(sums[slice].w);
      }
      publish_four(output + placed_input(at.rows + at.group, column, HIDDEN), uint2{pack(residual.x, residual.y), pack(residual.z, residual.w)});
      // Nobody else reads them.
#pragma unroll
      for (int slice = 0; slice < FF_SLICES; slice++) publish_eight(from + slice * SLICE, make_uint4(UNWRITTEN, UNWRITTEN, UNWRITTEN, UNWRITTEN));
    }
    leave_sums(output, share);
  }

  // A layer's attention among the queries, or over the context, of one head.
  DEVICE void attend_in(int layer, bool self) {
    renew_place();
    Element* own = buffers(layer);
    const Element* query = self ? own + QUERY_KEYS : layer ? own + CONTEXT_QUERY : p.query;
    int count = self ? QUERIES : key_count;
    attend(at, shared, stream, own, query, self, count, own + (self ? MIXED : ATTENDED), layer ? INPUT_AHEAD : 0);
    leave();
    stamp(p.stamps, 6 + layer * LAYER_STAMPS + 2 * KINDS + !self);
  }

  DEVICE void run() {
    // Half a layer at a time, so that both halves share the code of an attention, the second with the first step of the next layer.
#pragma unroll 1
    for (int half = 1; half < 2 * LAYERS; half++) {
      int layer = half / 2;
      bool self = half % 2 == 0;
      if (at.share < HEADS) attend_in(layer, self);
      else pause_at_work(self ? SELF_AHEAD : CROSS_AHEAD);
#pragma unroll 1
      for (int kind = self ? SELF_OUT : CROSS_OUT, last = self ? CROSS_QUERY : CROSS_OUT; kind <= last; kind++) product<false>(layer, kind);
      if (self) continue;
#pragma unroll 1
      for (int step = 0; step < 3; step++) {
        product<true>(layer + step / 2, step == 0 ? UP : step == 1 ? DOWN : layer + 1 < LAYERS ? QKV : KINDS);
        if (step == 1) reduce(layer);
      }
    }
  }
};
