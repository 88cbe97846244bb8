// The adapter whose weights do not fit the blocks, in one cooperative launch: GRID blocks of 256 threads stay until the clip is translated.
//
// The context as in layout.cuh; then keys and values of all layers, then the chain of short steps on the queries. The context, and keys and values, are
// waited for by all blocks, which count themselves; what the chain exchanges is written over a pattern that no result has (UNWRITTEN), and whoever
// needs it reads until the pattern is gone. Of that there are two sets: a launch uses one and clears the other for the launch after it. Parts, which
// one reads, have one set: those of the chain are cleared by that reader, those of the context along with the other set, once all have read them, so
// that nobody waits for that before keys and values.
//
// A block has a tile of 16 query rows and a share of the columns of what ends in HIDDEN columns. Of the wide products it has two tiles, so that fewer
// blocks read their weights, which are what takes longest. Its weights are one stream of units of 8 columns, in the order in which it multiplies
// them, and pass through a ring in shared memory: they keep coming while the block waits for its input. So do, in front of each layer's CROSS_OUT, the
// context's keys and values of the head that the block has, if any.

// The thread that waits for the context and asks for what keys and values are made of, but for the first weights: the one that takes the times.
constexpr int FETCHER = 0;
// Row tiles of the wide products, which take two at once; of an odd number the last block's second one does not exist.
constexpr int WIDE_TILES = divide_up(ROW_TILES, 2), WIDE_GROUPS = GRID / WIDE_TILES;
// An attention is not split: one block a head and 16 rows.
static_assert(GROUPS >= HEADS, "blocks for an attention");
// The products of a layer; the first layer starts at CROSS_OUT. Behind the last layer comes the output.
enum Kind { QKV, SELF_OUT, CROSS_QUERY, CROSS_OUT, UP, DOWN, KINDS };
__host__ __device__ constexpr bool is_wide(int kind) { return kind == QKV || kind == UP || kind == DOWN || kind == KINDS; }
__host__ __device__ constexpr int width_of(int kind) { return kind == QKV ? 3 * HIDDEN : kind == UP ? FF : kind == KINDS ? OUT : HIDDEN; }
// The contracted axis of DOWN is shared by blocks: FF_SLICES slices of it, each made by SLICE_SHARES blocks of the same rows.
constexpr int FF_SLICE = FF / FF_SLICES, SLICE_SHARES = WIDE_GROUPS / FF_SLICES;
static_assert(SLICE_SHARES > 0 && FF_SLICE % 32 == 0 && FF_SLICE * FF_SLICES == FF, "slices of the feed-forward");
constexpr int WAITS = 3 + 6 * (LAYERS - 1) + 1;  // of products for their input
// Cycles before the first look at the parts of the context, a step's input, parts of DOWN, and where a block has no part of an attention.
constexpr int PARTS_AHEAD = 900, INPUT_AHEAD = 200, SUM_AHEAD = 600, SELF_AHEAD = 2000, CROSS_AHEAD = 4000;

// Elements of a layer's exchange buffers; those of the first begin with ATTENDED.
constexpr int KEY_BLOCKS = divide_up(ROWS, 32);
constexpr int QUERY_KEYS = 0, VALUES = QUERY_KEYS + 2 * ROWS * HIDDEN, MIXED = VALUES + 32 * KEY_BLOCKS * HIDDEN, AFTER_SELF = MIXED + ROWS * HIDDEN;
// Rows and what each block of GROUPS leaves of them for the norm, two fp32 sums.
constexpr int ROWS_AND_SUMS = ROWS * HIDDEN + GROUPS * ROWS * 4;
constexpr int CONTEXT_QUERY = AFTER_SELF + ROWS_AND_SUMS, ATTENDED = CONTEXT_QUERY + ROWS * HIDDEN, AFTER_CROSS = ATTENDED + ROWS * HIDDEN;
constexpr int RAISED = AFTER_CROSS + ROWS_AND_SUMS, AFTER_FF = RAISED + ROWS * FF, LAYER_EXCHANGE = AFTER_FF + ROWS_AND_SUMS;
constexpr int EXCHANGE = LAYERS * LAYER_EXCHANGE - ATTENDED;
// Elements of what the blocks of DOWN leave, fp32 sums.
constexpr int CHAIN_PARTS = LAYERS * FF_SLICES * ROWS * HIDDEN * 2;

// Bytes of a unit of weights, of a token's key and value in a head, and of a unit's place in the ring. A unit of keys and values has those of UNIT_KEYS
// tokens in one head, keys first.
constexpr int UNIT_BYTES = 16 * larger(HIDDEN, FF_SLICE), KEY_BYTES = 2 * HEAD * 2, SLOT_BYTES = larger(UNIT_BYTES, 32 * KEY_BYTES);
constexpr int UNIT_KEYS = SLOT_BYTES < 64 * KEY_BYTES ? 32 : 64, KEYS_BYTES = UNIT_KEYS * KEY_BYTES;
__host__ __device__ constexpr int key_units(int tokens) { return divide_up(tokens, UNIT_KEYS); }

// What one reader has, or all after they waited for all; behind it two sets of what many read: [EXCHANGE] for the chain, and statistics of the rows of
// the context's parts. Those parts lie between the two, so that they are cleared in one piece with either.
struct Exchange {
  Element *context, *keys_values, *chain;
  uint4 *chain_parts, *parts, *statistics, *cleared, *end;
  DEVICE Exchange() {}
  DEVICE Exchange(const Parameters& p, int set) {
    int numbers = TEAMS + tiles_of(p);
    chain_parts = (uint4*)p.exchange;
    context = (Element*)(chain_parts + CHAIN_PARTS / 8);
    keys_values = context + divide_up(p.vlm_tokens + p.dino_tokens, 128) * 128 * HIDDEN;
    int of_set = EXCHANGE / 8 + numbers * 64, of_parts = numbers * (16 * HIDDEN * PART_WORDS);
    uint4* first = (uint4*)(keys_values + LAYERS * HEADS * key_units(p.vlm_tokens + p.dino_tokens) * (KEYS_BYTES / 2));
    parts = first + of_set;
    chain = (Element*)(first + (size_t)set * (of_set + of_parts));
    statistics = (uint4*)(chain + EXCHANGE);
    cleared = first + set * of_set;
    end = cleared + of_set + of_parts;
  }
};

// Most units of 8 columns that one of so many blocks has.
__host__ __device__ constexpr int most_units(int width, int blocks) { return divide_up(width / 8, blocks); }
constexpr int QKV_UNITS = most_units(3 * HIDDEN, WIDE_GROUPS), UP_UNITS = most_units(FF, WIDE_GROUPS), OUT_UNITS = most_units(OUT, WIDE_GROUPS);
constexpr int WIDEST = larger(larger(QKV_UNITS, UP_UNITS), larger(OUT_UNITS, most_units(HIDDEN, GROUPS)));
// Units whose sums the warps exchange at once, so that each finishes one of a tile at most: of what ends in HIDDEN columns all, of the wide products fewer,
// so that weights of the next pass come meanwhile.
constexpr int NARROW = most_units(HIDDEN, GROUPS), WIDE_PASS = WARPS / 2;
static_assert(NARROW <= WARPS && SLOTS >= larger(NARROW, WIDE_PASS), "units of a pass");

// What a warp of an attention leaves of a row.
constexpr int MIXTURE_LINE = 72;

// Shared memory: first the stages of the context's products, then those of keys and values, then the ring of weights. Behind these what the eight
// warps made of their slices of the contracted axis, twice in turns, or of their keys; an attention's query; a product's biases and sums, and what each warp
// found of each row, both twice in turns; what each warp leaves of the rows that it makes.
constexpr int STAGES = 5, STAGE_BYTES = (128 + COLUMNS) * 128;
constexpr int SLICES_AT = SLOTS * SLOT_BYTES;
constexpr int QUERY_AT = SLICES_AT + WARPS * 16 * larger(WARPS * 8, MIXTURE_LINE) * 4, COLUMNS_AT = QUERY_AT + 16 * HEAD * 2;
constexpr int ROW_SUMS_BYTES = 2 * WARPS * 16 * 8, COLUMNS_BYTES = 2 * WIDEST * 8 * 4, SUMS_AT = COLUMNS_AT + 2 * COLUMNS_BYTES;
constexpr int SUM_PARTS_AT = SUMS_AT + 2 * ROW_SUMS_BYTES;
constexpr int KV_COLUMNS = KV_PARTS * KV_WIDTH, KV_WEIGHT_BYTES = KV_COLUMNS * 128, KV_STAGE_BYTES = KV_WEIGHT_BYTES + 128 * 128;
constexpr int ARRIVALS_AT = larger(SUM_PARTS_AT + WARPS * 16 * 8, larger(STAGES * STAGE_BYTES, KV_STAGES * KV_STAGE_BYTES));
// Arrivals of weights of the chain, then of stages of keys and values, then of warps that are done with such a stage, and with what they leave each other.
constexpr int LEFT_AT = ARRIVALS_AT + (SLOTS + 2 * KV_STAGES) * 8, SHARES_AT = LEFT_AT + 8, SOURCES_AT = SHARES_AT + (KINDS + 1) * 12;
// Behind all the rest, which unit of all is which of the block's, and how many it has.
constexpr int MOST_TURNS = LAYERS * (QKV_UNITS + 3 * NARROW + UP_UNITS + most_units(HIDDEN, SLICE_SHARES) + key_units(MOST_TOKENS)) + OUT_UNITS;
constexpr int SHARED_BYTES = SOURCES_AT + (MOST_TURNS + 1) * 2;
static_assert(6 * LAYERS - 2 <= 32, "a lane for every product");
static_assert(SHARED_BYTES == EXPECTED_SHARED_BYTES && EXCHANGE == EXPECTED_EXCHANGE && CHAIN_PARTS == EXPECTED_PARTS, "kernels/wide_shape.py");

// Units of 16 columns of the context that a warp finishes at once, so many that 640 tokens are one round of all warps, since each round waits for the
// cache; and parts that it asks for at once. HIDDEN is a multiple of four units.
constexpr int FINISHED_UNITS = 640 / 16 * (HIDDEN / 16) / 2 <= GRID * WARPS ? 2 : HIDDEN / 16 % 3 == 0 ? 3 : 4;
constexpr int PARTS_AT_ONCE = FINISHED_UNITS == 2 ? 8 / PART_WORDS : 4;
constexpr bool READER_CLEARS = false;

// How much further in the context, as `context_place` has it, two more columns are.
constexpr int CONTEXT_STEP = 2;
