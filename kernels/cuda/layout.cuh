// The whole adapter in one cooperative launch: GRID blocks of 256 threads stay until the clip is translated.
//
// First the context: both encoders' tokens projected, in parts of the contracted axis that are then added; then keys and values of all layers;
// then the chain of short steps on the queries, where a block has one tile of 16 query rows and a share of every product's columns. There is
// no barrier over the grid: a result is written over a pattern that no result has (UNWRITTEN), and whoever needs it reads until the pattern
// is gone. What many read has two sets of buffers; a launch uses one and clears the other for the launch after it. Parts, which
// one reads, have one set, which that reader clears.
//
// Fragments are 16 bytes a lane: the contracted axis may be permuted at will as long as both sides are, so that lane t of a quad holds places
// 8 t to 8 t + 7 of every 32 (keys, values) or 4 t to 4 t + 3 of every 16 (inputs and weights of the chain's products). A warp reads its slice
// of a product's input from the cache in that order, straight into registers; weights of the chain lie in memory in that order and come a
// step ahead.

// The thread that asks for weights, of the warp that has the least to do otherwise.
constexpr int FETCHER = THREADS - 32;
// Parts of the context among which an attention is split.
constexpr int SPLITS = GROUPS / HEADS < 3 ? GROUPS / HEADS : 3;
// The steps of a layer; the first layer starts at CROSS_ATTEND. Behind the last layer comes the output. What self-attention mixes stays in its
// block, which multiplies it by its rows of the weight that follows; SELF_OUT adds that up.
// The query of the context needs no product: QKV makes x Wq, SELF_OUT adds what the heads make of Wo Wq, CROSS_ATTEND applies the norm.
enum Kind { QKV, SELF_ATTEND, SELF_OUT, CROSS_ATTEND, CROSS_OUT, UP, DOWN, KINDS };
constexpr int WAITS = 3 + 5 * (LAYERS - 1) + 1;  // of products and sums, for their input
// Cycles before the first look at the parts of the context, the context, a step's input, the parts of an attention and of SELF_OUT, and where a block
// has no part of an attention among the queries or over the context.
constexpr int PARTS_AHEAD = 900, CONTEXT_AHEAD = 600, INPUT_AHEAD = 100, MERGE_AHEAD = 800, SUM_AHEAD = 600, SELF_AHEAD = 2000, CROSS_AHEAD = 3000;

// Two blocks a head make parts of SELF_OUT, one of the residual, behind these one of the query.
constexpr int SELF_SOURCES = 2 * HEADS;

// Elements of the parts of SELF_OUT in a layer but the first, and of a layer's exchange buffers; those of the first begin with LOGS.
constexpr int LAYER_PARTS = SELF_SOURCES * ROWS * HIDDEN, CHAIN_PARTS = (LAYERS - 1) * LAYER_PARTS;
constexpr int KEY_BLOCKS = (ROWS + 31) / 32;
constexpr int QUERY_KEYS = 0, VALUES = QUERY_KEYS + 2 * ROWS * HIDDEN, QUERY = VALUES + 32 * KEY_BLOCKS * HIDDEN;
constexpr int ROW_SUMS = QUERY + ROWS * HIDDEN, LOGS = ROW_SUMS + 4 * ROWS * GROUPS, PARTS = LOGS + 2 * 4 * ROWS * HEADS;
constexpr int ATTENDED = PARTS + SPLITS * ROWS * HIDDEN, AFTER_CROSS = ATTENDED + ROWS * HIDDEN, RAISED = AFTER_CROSS + ROWS * HIDDEN;
constexpr int AFTER_FF = RAISED + ROWS * FF, LAYER_EXCHANGE = AFTER_FF + ROWS * HIDDEN, EXCHANGE = LAYERS * LAYER_EXCHANGE - LOGS;

// Parts of the chain's sums and of the context's tiles, which one reader has, who makes them ready for the next launch. Behind them one of the two
// sets of what many read: [EXCHANGE] for the chain, the context [padded, HIDDEN], keys and values [LAYERS, 2, padded * HIDDEN], statistics of the
// rows of the context's parts.
struct Exchange {
  Element *chain_parts, *chain, *context, *keys_values;
  uint4 *parts, *statistics, *cleared, *end;
  DEVICE Exchange() {}
  DEVICE Exchange(const Parameters& p, int set) {
    int padded = divide_up(p.vlm_tokens + p.dino_tokens, 32) * 32;
    int numbers = TEAMS + tiles_of(p);
    chain_parts = p.exchange;
    parts = (uint4*)(chain_parts + CHAIN_PARTS);
    chain = (Element*)(parts + numbers * (16 * HIDDEN * PART_WORDS)) + (size_t)set * (EXCHANGE + (1 + 2 * LAYERS) * padded * HIDDEN + numbers * (64 * 8));
    context = chain + EXCHANGE;
    keys_values = context + padded * HIDDEN;
    statistics = (uint4*)(keys_values + 2 * LAYERS * padded * HIDDEN);
    cleared = (uint4*)chain;
    end = statistics + numbers * 64;
  }
};

// Most units of 8 columns that a block has of a product with so many columns; those that end in HIDDEN columns, the wide ones, and the output.
__host__ __device__ constexpr int block_units(int width) { return divide_up(width / 8, GROUPS); }
constexpr int NARROW = block_units(HIDDEN), QKV_UNITS = block_units(3 * HIDDEN) + NARROW;
constexpr int WIDE = larger(QKV_UNITS, block_units(FF)), OUT_UNITS = block_units(OUT);
static_assert(NARROW <= 4 && GROUPS >= 2 * HEADS, "columns of a block");

// What a block keeps of 16 rows: columns of a head. Lines of an odd multiple of 16 places share no banks where they are read.
constexpr int KEPT_LINE = HEAD | 16;

// Shared memory: the pipeline of the context's products. Later the weights of two steps of the chain, a REGION each, or of the output in both; at
// SLICES_AT what the eight warps made of their slices of the contracted axis, or of their keys; at KEPT_AT an attention's query, then what self-attention
// mixes; at QUERY_AT the block's columns of x Wq. At SUMS_AT, apart from both, what each warp found of each row.
constexpr int STAGES = 5, STAGE_BYTES = (128 + COLUMNS) * 128;
constexpr int REGION_UNITS = larger(larger(WIDE, divide_up(OUT_UNITS, 2)), HEAD / 8);
constexpr int REGION = 16 * larger(NARROW * larger(HIDDEN, FF), REGION_UNITS * HIDDEN), SLICES_AT = 2 * REGION;
constexpr int KEPT_AT = SLICES_AT + larger(larger(WIDE, OUT_UNITS), HEAD / 8) * WARPS * 32 * 8;
// Units of the output whose weights are in the first region that they take, and in the other.
constexpr int OUT_FIRST = smaller(OUT_UNITS, REGION / (16 * HIDDEN)), OUT_REST = OUT_UNITS - OUT_FIRST;
constexpr int QUERY_AT = KEPT_AT + 16 * KEPT_LINE * 2;
// Behind the stages, as far as there is room, the weights of keys and values.
constexpr int KV_BYTES = KV_COLUMNS * HIDDEN * 2, KV_WEIGHTS_AT = smaller(STAGES * STAGE_BYTES, larger(ROOM - KV_BYTES, 0) / 1024 * 1024);
constexpr int SUMS_AT = larger(larger(STAGES * STAGE_BYTES, KV_WEIGHTS_AT + KV_BYTES), QUERY_AT + 16 * NARROW * 8 * 4);
constexpr int ARRIVALS_AT = SUMS_AT + 1024, SHARED_BYTES = ARRIVALS_AT + 4 * 8;
static_assert(SHARED_BYTES == EXPECTED_SHARED_BYTES && EXCHANGE == EXPECTED_EXCHANGE && CHAIN_PARTS == EXPECTED_PARTS, "kernels/persistent_shape.py");

// Units of 16 columns of the context that a warp finishes at once, and parts that it asks for at once, which it clears.
constexpr int FINISHED_UNITS = 2, PARTS_AT_ONCE = 8 / PART_WORDS;
constexpr bool READER_CLEARS = true;

// How much further in the context, as `context_place` has it, two more columns are.
constexpr int CONTEXT_STEP = 4;
