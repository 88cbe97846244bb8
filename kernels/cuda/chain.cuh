// The chain of products and attentions on the queries.

DEVICE int kind_of(int step) { return step < OUT_STEP ? step % KINDS : KINDS; }
DEVICE int width_of(int kind) { return kind == QKV ? 3 * HIDDEN : kind == UP ? FF : kind == KINDS ? OUT / OUT_PASSES : HIDDEN; }

// Where among a layer's buffers a product finds its input, the layer's before for QKV and the output, and leaves what it makes.
DEVICE int input_of(int kind) {
  switch (kind) {
    case SELF_OUT: return MIXED;
    case QUERY_OUT: return AFTER_SELF;
    case UP: return AFTER_CROSS;
    case DOWN: return RAISED;
    default: return AFTER_FF - LAYER_EXCHANGE;
  }
}

DEVICE int output_of(int kind) {
  switch (kind) {
    case QKV: return QUERY_KEYS;
    case SELF_OUT: return AFTER_SELF;
    case QUERY_OUT: return QUERY;
    case CROSS_OUT: return AFTER_CROSS;
    case UP: return RAISED;
    default: return AFTER_FF;
  }
}

DEVICE int next_product(int step) {
  int kind = kind_of(++step);
  return kind == SELF_ATTEND || kind == CROSS_ATTEND ? step + 1 : step;
}

// The block's units of 8 columns.
struct Units {
  int first, last;
  DEVICE Units(const Place& at, int width) : first(at.share * (width / 8) / GROUPS), last((at.share + 1) * (width / 8) / GROUPS) {}
};

// A product's weight lies as its fragments do: [units of 8 rows, blocks of 32 columns, lanes, 8], see fragments() in persistent.py. A block's
// units are one piece of it, which the first warp asks for.
DEVICE void fetch_weights(const Place& at, const Element* weight, int width, int dim, unsigned char* region, uint64_t* arrival) {
  if (at.warp > 0) return;
  Units units(at, width);
  if (at.thread == 0) expect_bytes(arrival, (units.last - units.first) * dim * 16);
  warp_sync();
  for (int unit = at.thread; unit < units.last - units.first; unit += 32)
    copy_bulk(region + unit * dim * 16, weight + (size_t)(units.first + unit) * dim * 8, dim * 16, arrival);
}

// Where the 16 bytes `chunk` of a row of a product's input lie, as fragments do.
DEVICE uint4* input_chunk(unsigned char* staging, int row, int chunk) {
  return (uint4*)staging + ((chunk >> 2) * 2 + (row >> 3)) * 32 + (row & 7) * 4 + (chunk & 3);
}

// Wait for the block's 16 rows of x [ROWS, dim], and leave them as fragments: sixteen threads a row.
DEVICE void take(const Place& at, const Element* x, int dim, unsigned char* staging) {
  constexpr int BATCH = 7;
  int row = at.thread >> 4, last = dim / 8 - 1;
  const Element* from = x + (at.rows + row) * dim;
#pragma unroll 1
  for (int batch = 0; batch <= last; batch += 16 * BATCH) {
    int first = batch + (at.thread & 15);
    uint4 v[BATCH] = {};
    while (true) {
      uint32_t largest = 0;
#pragma unroll
      for (int i = 0; i < BATCH; i++)
        if (batch + i * 16 <= last) v[i] = load_fresh(from + min(first + i * 16, last) * 8);
#pragma unroll
      for (int i = 0; i < BATCH; i++) largest = max(largest, largest_word(v[i]));
      if (warp_all(largest != UNWRITTEN)) break;
      relax();
    }
#pragma unroll
    for (int i = 0; i < BATCH; i++)
      if (batch + i * 16 <= last) *input_chunk(staging, row, min(first + i * 16, last)) = v[i];
  }
}

// As `take`, of an attention whose parts over the context [SPLITS, ROWS, HIDDEN] come with logs of their sums [ROWS, HEADS, 4].
DEVICE void take_merged(const Place& at, const Element* parts, const uint32_t* logs, unsigned char* staging) {
  constexpr int CHUNKS = divide_up(HIDDEN / 8, 16);
  uint4 part[CHUNKS][SPLITS], log[CHUNKS];
  int row = at.thread >> 4, chunk[CHUNKS];
#pragma unroll
  for (int i = 0; i < CHUNKS; i++) chunk[i] = min((at.thread & 15) + i * 16, HIDDEN / 8 - 1);
  // The logs are little to ask for again and again; the parts are mostly there when they are.
  while (true) {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) log[i] = load_fresh(logs + ((at.rows + row) * HEADS + chunk[i] / 8) * 4);
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) largest = max(largest, largest_log(log[i]));
    if (warp_all(largest != UNWRITTEN)) break;
    relax();
  }
  while (true) {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
#pragma unroll
      for (int s = 0; s < SPLITS; s++) part[i][s] = load_fresh(parts + (s * ROWS + at.rows + row) * HIDDEN + chunk[i] * 8);
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
#pragma unroll
      for (int s = 0; s < SPLITS; s++) largest = max(largest, largest_word(part[i][s]));
    if (warp_all(largest != UNWRITTEN)) break;
    relax();
  }
#pragma unroll
  for (int i = 0; i < CHUNKS; i++) {
    const uint32_t words[4] = {log[i].x, log[i].y, log[i].z, log[i].w};
    float largest = EMPTY, total = 0, share[SPLITS];
#pragma unroll
    for (int s = 0; s < SPLITS; s++) largest = fmaxf(largest, __uint_as_float(words[s]));
#pragma unroll
    for (int s = 0; s < SPLITS; s++) total += share[s] = power_of_two(__uint_as_float(words[s]) - largest);
    float scale = reciprocal(total);
    uint32_t merged[4];
#pragma unroll
    for (int word = 0; word < 4; word++) {
      float x = 0, y = 0;
#pragma unroll
      for (int s = 0; s < SPLITS; s++) {
        const uint32_t pairs[4] = {part[i][s].x, part[i][s].y, part[i][s].z, part[i][s].w};
        float2 pair = unpack(pairs[word]);
        x += share[s] * pair.x;
        y += share[s] * pair.y;
      }
      merged[word] = pack(x * scale, y * scale);
    }
    *input_chunk(staging, row, chunk[i]) = make_uint4(merged[0], merged[1], merged[2], merged[3]);
  }
}

// Mean and 1 / deviation of a row of HIDDEN, for its sixteen threads.
DEVICE float2 row_statistics(const Place& at, unsigned char* staging) {
  float2 sum = {0, 0};
#pragma unroll 1
  for (int chunk = at.thread & 15; chunk < HIDDEN / 8; chunk += 16) {
    uint4 v = *input_chunk(staging, at.thread >> 4, chunk);
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float2 pair = unpack(words[i]);
      sum.x += pair.x + pair.y;
      sum.y += pair.x * pair.x + pair.y * pair.y;
    }
  }
#pragma unroll
  for (int mask = 1; mask < 16; mask *= 2) sum.x += warp_exchange(sum.x, mask), sum.y += warp_exchange(sum.y, mask);
  float mean = sum.x / HIDDEN;
  return make_float2(mean, inverse_deviation(sum, mean, HIDDEN));
}

// Leave the sums [WARPS, 16, LINE] of each warp's slice of the contracted axis in the input's place.
template <int UNITS>
DEVICE void multiply_rows(const Place& at, int units, int dim, unsigned char* staging, const unsigned char* region) {
  float result[UNITS][4] = {};
  int lane = at.thread & 31;
#pragma unroll 1
  for (int block = at.warp; block < dim / 32; block += WARPS) {
    const uint4 a[2] = {((const uint4*)staging)[block * 64 + lane], ((const uint4*)staging)[block * 64 + 32 + lane]};
#pragma unroll
    for (int i = 0; i < UNITS; i++)
      // A unit too many is computed again, which needs no branch.
      multiply_32(result[i], a, ((const uint4*)region)[(max(min(i, units - 1), 0) * (dim / 32) + block) * 32 + lane]);
  }
  block_sync();
  float* sums = (float*)staging + (at.warp * 16 + at.group) * LINE + at.quad * 2;
#pragma unroll
  for (int i = 0; i < UNITS; i++) {
    *(float2*)(sums + i * 8) = make_float2(result[i][0], result[i][1]);
    *(float2*)(sums + 8 * LINE + i * 8) = make_float2(result[i][2], result[i][3]);
  }
  block_sync();
}

// The error function within 1.5e-7: Abramowitz and Stegun, 7.1.26.
DEVICE float gelu(float x) {
  float z = fabsf(x) * 0.7071067811865476f, t = reciprocal(1 + 0.3275911f * z);
  float tail = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  float erf = 1 - tail * power_of_two(-1.4426950408889634f * z * z);
  return 0.5f * x * (1 + (x < 0 ? -erf : erf));
}

struct Chain {
  const Parameters& p;
  Place at;
  unsigned char* shared;
  Element* exchange;
  float2 residual;  // of this thread's columns, where a product has one
  int turn;         // of products; its parity says which region of weights is meant

  DEVICE unsigned char* region() const { return shared + (turn & 1) * EVEN_REGION; }
  DEVICE uint64_t* arrival() const { return (uint64_t*)(shared + ARRIVALS_AT) + (turn & 1); }

  DEVICE void fetch(int step) {
    if (step >= LAST_STEP) return;
    int kind = kind_of(step);
    fetch_weights(at, p.products[step].weight, width_of(kind), kind == DOWN ? FF : HIDDEN, region(), arrival());
  }

  DEVICE void load_residual() {
    Units units(at, HIDDEN);
    int row = at.rows + (at.thread >> 4), column = units.first * 8 + (at.thread & 15) * 2;
    residual = make_float2(0, 0);
    if (row < QUERIES && column < units.last * 8) residual = *(const float2*)(p.hidden_states + row * HIDDEN + column);
  }

  // A product, with the norm before it and GELU or the residual after it. It writes the next step's input: for QKV queries and keys
  // [ROWS, 2 HIDDEN] and values [HIDDEN, ROWS], else [ROWS, width]; behind the last layer a part of the output.
  DEVICE void product(int step, int kind, Element* own) {
    bool norm = kind != CROSS_OUT && kind != SELF_OUT && kind != DOWN;
    int dim = kind == DOWN ? FF : HIDDEN, width = width_of(kind);
    Units units(at, width);
    unsigned char* staging = shared + STAGING_AT;
    // Asked for ahead, a column a thread.
    const Linear& linear = p.products[step];
    int column = units.first * 8 + at.thread;
    float bias = 0, sum = 0;
    if (column < units.last * 8) {
      bias = linear.bias[column];
      if (norm) sum = linear.sums[column];
    }
    // What the product before this has left there was read by all.
    block_sync();
    if (kind == CROSS_OUT) take_merged(at, own + PARTS, (const uint32_t*)(own + LOGS), staging);
    else take(at, own + input_of(kind), dim, staging);
    float2 *trim = (float2*)(shared + TRIM_AT), statistics = make_float2(0, 1);
    if (column < units.last * 8) trim[at.thread] = make_float2(bias, sum);
    if (norm) statistics = row_statistics(at, staging);
    stamp(p.stamps, 6 + 2 * step);
    block_sync();
    wait_for_bytes(arrival(), turn >> 1 & 1);
    int count = units.last - units.first;
    if (width == HIDDEN) multiply_rows<NARROW>(at, count, dim, staging, region());
    else multiply_rows<WIDE>(at, count, dim, staging, region());

    int row = at.rows + (at.thread >> 4);
#pragma unroll 1
    for (int inside = (at.thread & 15) * 2; (inside & ~31) < count * 8; inside += 32) {
      const float* sums = (const float*)staging + (at.thread >> 4) * LINE + inside;
      float x = 0, y = 0;
#pragma unroll
      for (int slice = 0; slice < WARPS; slice++) {
        float2 part = *(const float2*)(sums + slice * 16 * LINE);
        x += part.x;
        y += part.y;
      }
      float2 left = trim[inside], right = trim[inside + 1];
      x = statistics.y * (x - statistics.x * left.y) + left.x;
      y = statistics.y * (y - statistics.x * right.y) + right.x;
      if (kind == UP) x = gelu(x), y = gelu(y);
      if (!norm) x = residual.x += x, y = residual.y += y;
      int to_column = units.first * 8 + inside;
      uint32_t pair = pack(x, y);
      Element* to = own + output_of(kind) + row * (kind == QKV ? 2 * HIDDEN : width) + to_column;
      if (kind == KINDS) to = p.output + (step - OUT_STEP) * width + row * OUT + to_column;
      if (kind == QKV) {
        // Two rows of a column lie side by side among the values; the next row's thread is 16 lanes away.
        bool odd = row & 1;
        float other = warp_exchange(odd ? x : y, 16);
        if (to_column >= 2 * HIDDEN) {
          to = own + VALUES + (to_column - 2 * HIDDEN + odd) * ROWS + row - odd;
          pair = odd ? pack(other, y) : pack(x, other);
        }
      }
      if (inside < count * 8 && (kind != KINDS || row < QUERIES)) publish(to, pair);
    }
    fetch(next_product(next_product(step)));
    turn++;
    stamp(p.stamps, 7 + 2 * step);
  }

  DEVICE void attend_in(int kind, int layer) {
    Element* own = exchange + layer * LAYER_EXCHANGE;
    int head = at.share % HEADS, split = at.share / HEADS;
    if (split >= (kind == SELF_ATTEND ? 1 : SPLITS)) return;
    bool self = kind == SELF_ATTEND;
    int total = p.vlm_tokens + p.dino_tokens, padded = divide_up(total, 32) * 32, each = divide_up(padded / 32, SPLITS);
    size_t start = (size_t)layer * padded * HIDDEN;
    int first = self ? 0 : split * each, last = self ? divide_up(QUERIES, 32) : min(padded / 32, first + each);
    const Element *query = self ? own + QUERY_KEYS : layer ? own + QUERY : p.query;
    const Element *keys = self ? own + QUERY_KEYS + HIDDEN : p.keys + start;
    const Element *values = self ? own + VALUES + head * HEAD * ROWS : p.values + start + (size_t)head * HEAD * padded;
    attend(at, shared, query + head * HEAD, self ? 2 * HIDDEN : HIDDEN, keys + head * HEAD, self ? 2 * HIDDEN : HIDDEN, values,
           self ? ROWS : padded, first, last, self ? QUERIES : min(p.dino_tokens + p.lengths[0], total), self ? ROWS : padded, self,
           own + (self ? MIXED : PARTS + split * ROWS * HIDDEN) + head * HEAD, self ? nullptr : (float*)(own + LOGS) + head * 4 + split);
  }

  DEVICE void run() {
#pragma unroll 1
    for (int step = CROSS_ATTEND; step < LAST_STEP; step++) {
      int layer = min(step / KINDS, LAYERS), kind = kind_of(step);
      if (kind == SELF_ATTEND || kind == CROSS_ATTEND) {
        attend_in(kind, layer);
        stamp(p.stamps, 7 + 2 * step);
      } else {
        product(step, kind, exchange + layer * LAYER_EXCHANGE);
      }
    }
  }
};
