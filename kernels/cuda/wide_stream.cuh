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
  DEVICE uint64_t* arrival(int turn) const { return (uint64_t*)(shared + ARRIVALS_AT) + turn % SLOTS; }

  // Ask for as many units as the ring has place for, now that all warps have read those before `turn`: a warp for one each, first those that have
  // less to multiply.
  DEVICE void ask(const Place& at) {
    int until = min(turn + SLOTS, all);
#pragma unroll 1
    for (int unit = asked + (at.warp ^ 4); unit < until; unit += WARPS) {
      if ((at.thread & 31) > 0) continue;
      expect_bytes(arrival(unit), UNIT_BYTES);
      copy_bulk(slot(unit), from + (size_t)unit * UNIT_BYTES, UNIT_BYTES, arrival(unit));
    }
    asked = until;
  }

  DEVICE void wait(int turn) const { wait_for_arrival(arrival(turn), turn / SLOTS & 1); }
};
