// The context: both encoders' tokens projected, normalised and placed.

// Where a chunk of 16 bytes of a row of 128 lies, so that no two that are read together share a bank.
DEVICE int swizzled_at(int row, int chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }

DEVICE void* staged(unsigned char* stage, int row, int chunk) { return stage + swizzled_at(row, chunk); }

// Statistics of a tile's rows are shared by the blocks that make its columns; eight threads take a row.
constexpr int STATISTICS_ROWS = divide_up(128, ACROSS), STATISTICS_PASSES = divide_up(STATISTICS_ROWS, THREADS / 8);
constexpr int LEAD = 3, CONTEXT_UNITS = HIDDEN / 16;

// A tile [128 tokens, HIDDEN] of x W. All tiles together are one stream of steps of 64 places of the contracted axis, of which each team of
// ACROSS blocks takes an equal share: what a team makes of a tile is a part, number `team + index`. Shares are of steps that are counted, of which
// a tile may have more than it has steps, so that no share goes on in the next one.
struct Tile {
  bool vlm;
  int index, row, tokens;  // among all tiles; its first token, and how many there are from there on, of its encoder
  int first, last;         // steps of the stream
  DEVICE Tile(const Parameters& p, int index) : index(index) {
    int vlm_tiles = divide_up(p.vlm_tokens, 128), within = index < vlm_tiles ? index : index - vlm_tiles;
    vlm = index < vlm_tiles;
    row = within * 128, tokens = (vlm ? p.vlm_tokens : p.dino_tokens) - row;
    first = vlm ? within * VLM_STEPS : vlm_tiles * VLM_STEPS + within * DINO_STEPS, last = first + (vlm ? VLM_STEPS : DINO_STEPS);
  }
  DEVICE static Tile of_step(const Parameters& p, int step) {
    int vlm_tiles = divide_up(p.vlm_tokens, 128), beyond = step - vlm_tiles * VLM_STEPS;
    return Tile(p, beyond < 0 ? step / VLM_STEPS : vlm_tiles + beyond / DINO_STEPS);
  }
  // The team that makes a step of this tile.
  DEVICE int team_of(const Parameters& p, int step) const {
    int vlm_tiles = divide_up(p.vlm_tokens, 128), counted = vlm ? index * p.vlm_counted : vlm_tiles * p.vlm_counted + (index - vlm_tiles) * p.dino_counted;
    return (int)((counted + step - first + 0.5f) * p.team_steps_inverse);
  }
};

// What a thread copies of every step: rows 32 apart of x, and its chunks of the weights, which lie in memory as they do here: [ACROSS, steps,
// COLUMNS, 64].
struct StepCopies {
  const Element *x, *weight;
  int dim, rows, places, last;  // of what is left of a tile
  DEVICE void begin(const Parameters& p, const Place& at, int across, int step) {
    Tile tile = Tile::of_step(p, step);
    int row = at.thread >> 3, chunk = at.thread & 7, inside = step - tile.first;
    dim = tile.vlm ? VLM_DIM : DINO_DIM, rows = tile.tokens - row, places = dim - inside * 64 - chunk * 8, last = tile.last;
    x = (tile.vlm ? p.vlm : p.dino) + (size_t)(tile.row + row) * dim + inside * 64 + chunk * 8;
    weight = (tile.vlm ? p.vlm_weights : p.dino_weights) + (across * (tile.vlm ? VLM_STEPS : DINO_STEPS) + inside) * COLUMNS * 64 + at.thread * 8;
  }
  DEVICE void load(const Place& at, unsigned char* stage) {
    unsigned char* to = stage + swizzled_at(at.thread >> 3, at.thread & 7);
#pragma unroll
    for (int i = 0; i < 4; i++) copy_async(to + i * 4096, x + i * 32 * dim, places > 0 && i * 32 < rows);
    to = stage + 128 * 128 + at.thread * 16;
#pragma unroll
    for (int i = 0; i < divide_up(COLUMNS, 32); i++)
      if ((i + 1) * 32 <= COLUMNS || at.thread < COLUMNS % 32 * 8) copy_async(to + i * 4096, weight + i * 2048, true);
    x += 64, weight += COLUMNS * 64, places -= 64;
  }
};

// Where the context lies, of which each kernel makes keys and values in its own way.
DEVICE uint32_t context_place(uint32_t token, uint32_t column);

struct Context {
  const Parameters& p;
  const Place& at;
  unsigned char* shared;
  const Exchange& exchange;

  // The block's parts of its tiles, published. `meanwhile` is done while the first copies are on their way.
  template <typename Meanwhile>
  DEVICE void project(Meanwhile meanwhile) const {
    int team = block_index() / ACROSS, across = block_index() % ACROSS, first = p.first_steps[team], last = p.first_steps[team + 1];
    StepCopies copies;
    copies.last = first;
    auto load = [&](int step) {
      if (step < last) {
        if (step == copies.last) copies.begin(p, at, across, step);
        copies.load(at, stage(step - first));
      }
      copy_commit();
    };
#pragma unroll 1
    for (int i = 0; i < LEAD; i++) load(first + i);
    meanwhile();
#pragma unroll 1
    for (int step = first; step < last;) {
      Tile tile = Tile::of_step(p, step);
      float sums[COLUMNS / 8][4];
      float2 statistics[STATISTICS_PASSES] = {};
      int start = step, end = min(tile.last, last);
#pragma unroll 1
      for (; step < end; step++) {
        copy_wait<LEAD - 1>();
        fence_copies();
        block_sync();
        load(step + LEAD);
        multiply_stage(sums, stage(step - first) + at.warp / 4 * 64 * 128, stage(step - first) + 128 * 128, step > start);
        add_statistics(across, stage(step - first), statistics);
        multiplied_before();
      }
      multiplied(sums);
      // For what comes in the stages' place; a fence waits for whatever is under way, so that it stands before what is published.
      if (step == last) fence_copies();
      publish_part(team + tile.index, across, tile.tokens, sums);
      publish_statistics(team + tile.index, across, statistics);
    }
    copy_wait<0>();
  }

  DEVICE unsigned char* stage(int turn) const { return shared + turn % STAGES * STAGE_BYTES; }

  // Add what a stage [128, 64] says of the thread's rows.
  DEVICE void add_statistics(int across, unsigned char* stage, float2 (&sums)[STATISTICS_PASSES]) const {
#pragma unroll
    for (int pass = 0; pass < STATISTICS_PASSES; pass++) {
      int row = min(across * STATISTICS_ROWS + (at.thread >> 3) + pass * (THREADS / 8), 127);
      add_squares(sums[pass], *(const uint4*)staged(stage, row, at.thread & 7));
    }
  }

  // Of rows r and r + 8 side by side, for whoever finishes them.
  DEVICE void publish_statistics(int number, int across, const float2 (&sums)[STATISTICS_PASSES]) const {
    float2* to = (float2*)(exchange.statistics + number * 64);
#pragma unroll
    for (int pass = 0; pass < STATISTICS_PASSES; pass++) {
      float2 sum = sums[pass];
#pragma unroll
      for (int mask = 1; mask < 8; mask *= 2) sum.x += warp_exchange(sum.x, mask), sum.y += warp_exchange(sum.y, mask);
      int inside = (at.thread >> 3) + pass * (THREADS / 8), row = across * STATISTICS_ROWS + inside;
      if ((at.thread & 7) == 0 && inside < STATISTICS_ROWS && row < 128)
        publish_four(to + row / 16 * 16 + row % 8 * 2 + row / 8 % 2, uint2{__float_as_uint(sum.x), __float_as_uint(sum.y)});
    }
  }

  // Eight sums of a thread, columns 4 quad to 4 quad + 3 of rows `group` and `group` + 8, of 16 rows and as many columns.
  DEVICE uint4* part_of(int number, int slab, int unit) const {
    return exchange.parts + (((number * 8 + slab) * CONTEXT_UNITS + unit) * 32 + (at.thread & 31)) * PART_WORDS;
  }

  DEVICE void publish_part(int number, int across, int tokens, const float (&sums)[COLUMNS / 8][4]) const {
    if (at.warp * 16 >= tokens) return;
#pragma unroll
    for (int unit = 0; unit < COLUMNS / 16; unit++) {
      const float (&a)[4] = sums[unit * 2], (&b)[4] = sums[unit * 2 + 1];
      uint4* to = part_of(number, at.warp, across * (COLUMNS / 16) + unit);
#ifdef HALF
      publish_eight(to, as_words(a[0], a[1], b[0], b[1]));
      publish_eight(to + 1, as_words(a[2], a[3], b[2], b[3]));
#else
      publish_eight(to, make_uint4(pack(a[0], a[1]), pack(b[0], b[1]), pack(a[2], a[3]), pack(b[2], b[3])));
#endif
    }
  }

  // For keys and values that are made of whole tiles of rows: nobody uses those behind the last token, but a weight of zero times NaN is NaN.
  DEVICE void finish_padding() const {
    int total = p.vlm_tokens + p.dino_tokens, pairs = (divide_up(total, 32) * 32 - total) * (HIDDEN / 2);
    for (int pair = block_index() * THREADS + at.thread; pair < pairs; pair += GRID * THREADS)
      publish(exchange.context + context_place(total + pair / (HIDDEN / 2), pair % (HIDDEN / 2) * 2), 0);
  }

  // Parts added, 16 tokens and FINISHED_UNITS of 16 columns a warp: the context, at its `context_place`.
  DEVICE void finish(int length) const {
    constexpr int TASKS_OF_SLAB = CONTEXT_UNITS / FINISHED_UNITS, TASKS = 8 * TASKS_OF_SLAB;
    int ahead = PARTS_AHEAD;
#pragma unroll 1
    for (int task = at.warp * GRID + block_index(); task < tiles_of(p) * TASKS; task += GRID * WARPS) {
      Tile tile(p, task / TASKS);
      int slab = task % TASKS / TASKS_OF_SLAB;
      if (slab * 16 < tile.tokens) finish_units(tile, slab, task % TASKS_OF_SLAB * FINISHED_UNITS, length, ahead);
    }
  }

  DEVICE void finish_units(const Tile& tile, int slab, int unit, int length, int& ahead) const {
    constexpr int UNITS = FINISHED_UNITS, EACH = PARTS_AT_ONCE;
    int from = tile.team_of(p, tile.first), count = tile.team_of(p, tile.last - 1) - from + 1;
    int column = unit * 16 + at.quad * 4, inside = slab * 16 + at.group, token = (tile.vlm ? p.dino_tokens : 0) + tile.row + inside;
    const uint4* all_rows = settled(exchange.statistics + (from + tile.index) * 64 + slab * 8 + at.group);
    uint4* all_parts = settled(part_of(from + tile.index, slab, unit));
    const float* places_from = settled(p.table + (size_t)token * HIDDEN + column);
    float4 weight_sums[UNITS], places[2 * UNITS] = {};
#pragma unroll
    for (int i = 0; i < 2 * UNITS; i++) {
      if (i < UNITS) weight_sums[i] = *(const float4*)((tile.vlm ? p.vlm_sums : p.dino_sums) + column + i * 16);
      if (inside + i / UNITS * 8 < tile.tokens) places[i] = *(const float4*)(places_from + i / UNITS * 8 * HIDDEN + i % UNITS * 16);
    }
    float value[UNITS][8] = {};
    float2 statistics[2] = {};
#pragma unroll 1
    for (int left = count; left > 0; left -= EACH) {
      uint4 rows[EACH], parts[UNITS][EACH][PART_WORDS];
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        uint32_t word = i < left ? UNWRITTEN : 0;
        rows[i] = make_uint4(word, word, word, word);
#pragma unroll
        for (int part = 0; part < UNITS * PART_WORDS; part++) parts[part / PART_WORDS][i][part % PART_WORDS] = rows[i];
      }
      auto part_at = [&](int i, int word) {
        return all_parts + i * (8 * CONTEXT_UNITS * 32 * PART_WORDS) + word / PART_WORDS * 32 * PART_WORDS + word % PART_WORDS;
      };
      await(ahead, [&] {
        uint32_t largest = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
          load_missing(rows[i], all_rows + i * 64);
#pragma unroll
          for (int word = 0; word < UNITS * PART_WORDS; word++) load_missing(parts[word / PART_WORDS][i][word % PART_WORDS], part_at(i, word));
        }
#pragma unroll
        for (int i = 0; i < EACH; i++) {
          largest = max(largest, largest_word(rows[i]));
#pragma unroll
          for (int word = 0; word < UNITS * PART_WORDS; word++) largest = max(largest, largest_word(parts[word / PART_WORDS][i][word % PART_WORDS]));
        }
        return largest;
      });
      ahead = 0;
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        if (i >= left) break;
        // Nobody else reads them.
        if (READER_CLEARS) {
#pragma unroll
          for (int word = 0; word < UNITS * PART_WORDS; word++) publish_eight(part_at(i, word), make_uint4(UNWRITTEN, UNWRITTEN, UNWRITTEN, UNWRITTEN));
        }
#pragma unroll
        for (int j = 0; j < UNITS; j++) add_part(value[j], parts[j][i]);
        statistics[0].x += __uint_as_float(rows[i].x), statistics[0].y += __uint_as_float(rows[i].y);
        statistics[1].x += __uint_as_float(rows[i].z), statistics[1].y += __uint_as_float(rows[i].w);
      }
      all_rows += EACH * 64, all_parts = part_at(EACH, 0);
    }
    float one = tile.vlm ? 1.0f / VLM_DIM : 1.0f / DINO_DIM;
    float2 row[2] = {mean_and_scale(statistics[0], one), mean_and_scale(statistics[1], one)};
#pragma unroll
    for (int i = 0; i < 2 * UNITS; i++) {
      int half = i / UNITS;
      if (inside + half * 8 >= tile.tokens) break;
      const float* x = value[i % UNITS] + half * 4;
      float4 sum = weight_sums[i % UNITS], place = places[i];
      auto finished = [&](float x, float sum, float place) { return row[half].y * (x - row[half].x * sum) + place; };
      uint2 words = {pack(finished(x[0], sum.x, place.x), finished(x[1], sum.y, place.y)), pack(finished(x[2], sum.z, place.z), finished(x[3], sum.w, place.w))};
      // What lies behind the true length may be anything.
      if (tile.vlm && tile.row + inside + half * 8 >= length) words = {0, 0};
      Element* to = exchange.context + context_place(token + half * 8, column + i % UNITS * 16);
      if (CONTEXT_STEP == 2) publish_four(to, words);
      else publish(to, words.x), publish(to + CONTEXT_STEP, words.y);
    }
  }

  DEVICE static void add_part(float (&sums)[8], const uint4 (&part)[PART_WORDS]) {
#pragma unroll
    for (int word = 0; word < PART_WORDS; word++) {
      const uint32_t words[4] = {part[word].x, part[word].y, part[word].z, part[word].w};
#pragma unroll
      for (int i = 0; i < 4; i++) {
#ifdef HALF
        sums[word * 4 + i] += __uint_as_float(words[i]);
#else
        float2 pair = unpack(words[i]);
        sums[i * 2] += pair.x, sums[i * 2 + 1] += pair.y;
#endif
      }
    }
  }
};
