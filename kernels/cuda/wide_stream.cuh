// The weights of the chain: a block's units of 8 columns, in the order in which it multiplies them, through a ring of SLOTS.

// Units of a product of `width` columns: those of a block, and how many its predecessors have.
DEVICE int first_unit(int width, int share, int shares) { return share * (width / 8) / shares; }

// Columns of a product that are made over one slice of the contracted axis: units `first` to `last` - 1 of those of slice `slice`.
struct Share {
  int first, last, slice;
  DEVICE Share(int kind, int share) : slice(0) {
    int width = kind == QKV ? 3 * HIDDEN : kind == UP ? FF : kind == KINDS ? OUT : HIDDEN, shares = GROUPS;
    if (kind == DOWN) slice = min(share / SLICE_SHARES, FF_SLICES), share = slice < FF_SLICES ? share % SLICE_SHARES : 0, shares = SLICE_SHARES;
    first = first_unit(width, share, shares), last = slice < FF_SLICES ? first_unit(width, share + 1, shares) : first;
  }
  DEVICE int count() const { return last - first; }
  // Units of this product that the blocks before this one have.
  DEVICE int before() const { return slice * (HIDDEN / 8) + first; }
};

// Bytes of the first weights that come from memory while keys and values are made.
constexpr int PREFETCHED = 26 << 20;

struct Stream {
  unsigned char* shared;
  const unsigned char* from;
  int all, asked, turn;  // units of the block, how many were asked for, and which is multiplied next

  DEVICE Stream(const Parameters& p, const Place& at, unsigned char* shared) : shared(shared), all(0), asked(0), turn(0) {
    int before = 0;
#pragma unroll 1
    for (int kind = 0; kind <= KINDS; kind++) {
      Share share(kind, at.share);
      int times = kind == KINDS ? 1 : kind < CROSS_OUT ? LAYERS - 1 : LAYERS;
      before += times * share.before(), all += times * share.count();
    }
    from = (const unsigned char*)p.weights + (size_t)before * UNIT_BYTES;
  }

  DEVICE unsigned char* slot(int turn) const { return shared + turn % SLOTS * UNIT_BYTES; }
  DEVICE uint64_t* full(int turn) const { return (uint64_t*)(shared + ARRIVALS_AT) + turn % SLOTS; }
  DEVICE uint64_t* empty(int turn) const { return full(turn) + SLOTS; }

  DEVICE void begin(const Place& at) const {
    if (at.thread >= SLOTS) return;
    begin_arrivals(full(at.thread));
    begin_turns(empty(at.thread), WARPS);
  }

  // Ask for all units before number `until`, the warps in turns, each as soon as its place in the ring is free.
  DEVICE void ask(const Place& at, int until) {
#pragma unroll 1
    for (until = min(until, all); asked < until; asked++) {
      if (at.thread != asked % WARPS * 32) continue;
      if (asked >= SLOTS) wait_for_turn(empty(asked), asked / SLOTS - 1 & 1);
      expect_bytes(full(asked), UNIT_BYTES);
      copy_bulk(slot(asked), from + (size_t)asked * UNIT_BYTES, UNIT_BYTES, full(asked));
    }
  }

  // What fits the second-level cache comes there from memory: the first units, of which the blocks that share them each ask for some.
  DEVICE void prefetch_first(const Place& at) const {
    constexpr int FIRST = PREFETCHED / (UNIT_BYTES * GROUPS);
    int unit = at.rows / BLOCK_ROWS + at.thread * ROW_TILES;
    if (unit < min(FIRST, all)) prefetch(from + (size_t)unit * UNIT_BYTES, UNIT_BYTES);
  }

  DEVICE void wait(int turn) const { wait_for_bytes(full(turn), turn / SLOTS & 1); }

  // The warp has read the next units.
  DEVICE void leave(const Place& at, int units) {
    for (; units > 0; units--, turn++)
      if ((at.thread & 31) == 0) arrive(empty(turn));
  }
};
