// How a launch divides what an adapter's sizes, macros, ask of it.

__host__ __device__ constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }

__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }

__host__ __device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }

constexpr int THREADS = 256, WARPS = 8, HEAD = 64;
// Blocks that make the columns of a tile of the context side by side, and steps of 64 places of the axis that they contract.
constexpr int ACROSS = HIDDEN / COLUMNS, TEAMS = GRID / ACROSS, VLM_STEPS = divide_up(VLM_DIM, 64), DINO_STEPS = divide_up(DINO_DIM, 64);
// Eight sums of a part take so many 16 bytes: sums of raw features may be more than fp16 holds.
#ifdef HALF
constexpr int PART_WORDS = 2;
#else
constexpr int PART_WORDS = 1;
#endif
// Tiles of 16 query rows, and how many blocks share one.
constexpr int ROW_TILES = divide_up(QUERIES, 16), ROWS = 16 * ROW_TILES, GROUPS = GRID / ROW_TILES;

