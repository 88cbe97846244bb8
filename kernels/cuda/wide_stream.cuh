// The weights of the chain and the context's keys and values: a block's units, in the order in which it multiplies them, through a ring of SLOTS.

// Columns of a product that a block makes over a slice of the contracted axis: units `first` to `last` - 1 of those of slice `slice`.
struct Share {
  int first, last, slice;
  DEVICE Share(int kind) : slice(0) {
    bool wide = is_wide(kind);
    int units = width_of(kind) / 8, shares = wide ? WIDE_GROUPS : GROUPS, share = block_index() / (wide ? WIDE_TILES : ROW_TILES);
    if (kind == DOWN) shares = SLICE_SHARES, slice = min(share / SLICE_SHARES, FF_SLICES), share = slice < FF_SLICES ? share % SLICE_SHARES : shares;
    share = min(share, shares);
    first = share * units / shares, last = min(share + 1, shares) * units / shares;
  }
  DEVICE int count() const { return last - first; }
  // Units of this product that the blocks before this one have, all of them where it has no slice.
  DEVICE int before() const { return min(slice, FF_SLICES - 1) * (HIDDEN / 8) + first; }
};

// In memory the streams of the wide products come first, one for each share, behind them those of the others.
constexpr int WIDE_UNITS = ((LAYERS - 1) * 3 * HIDDEN + LAYERS * (FF + FF_SLICES * HIDDEN) + OUT) / 8;
// Units of keys and values, which lie elsewhere, are counted behind those of the weights.
constexpr int WEIGHT_UNITS = WIDE_UNITS + (3 * LAYERS - 2) * (HIDDEN / 8);
static_assert(WEIGHT_UNITS + LAYERS * HEADS * key_units(MOST_TOKENS) <= 1 << 16, "numbers of units in 16 bits");

// A place in the ring, and the parity of how often the ring was gone through before.
struct Position {
  int slot, parity;
  // So many units further, SLOTS at most.
  DEVICE Position after(int units) const {
    int next = slot + units;
    bool over = next >= SLOTS;
    return {over ? next - SLOTS : next, parity ^ over};
  }
};

struct Stream {
  unsigned char* shared;
  const unsigned char *weights, *keys_values;
  Position position;  // of the unit that is multiplied next
  int turn;           // its number

  DEVICE unsigned short* sources() const { return (unsigned short*)(shared + SOURCES_AT); }
  DEVICE int all() const { return sources()[MOST_TURNS]; }
  DEVICE Share& share(int kind) const { return ((Share*)(shared + SHARES_AT))[kind]; }

  // What the block has of every product, where the units lie, and how many there are, found once, which divisions make slow: a lane of a warp has a
  // product, the first layer's from CROSS_OUT on. Of the context's keys, `total` in memory, the first `keys` take part in the block's head.
  DEVICE void begin(const Place& at, int keys, int total) {
    int lane = at.thread & 31, contexts = at.share < HEADS ? key_units(keys) : 0;
    if (lane <= KINDS) share(lane) = Share(lane);
    int number = lane + CROSS_OUT, layer = number / KINDS, kind = layer < LAYERS ? number % KINDS : KINDS;
    if (number > KINDS * LAYERS) return;
    // Units before the lane's product, without those that the first layer lacks: in the block's order, and among those of its like, behind which
    // those of the shares before this one lie.
    int turn = contexts * (layer + (kind >= CROSS_OUT && kind < KINDS)), source = is_wide(kind) ? 0 : WIDE_UNITS;
#pragma unroll 1
    for (int i = 0; i <= KINDS; i++) {
      Share share(i);
      bool alike = is_wide(i) == is_wide(kind);
      int times = i == KINDS ? 0 : layer - (i < CROSS_OUT) + (kind < KINDS && i < kind);
      turn += times * share.count();
      if (alike) source += times * share.count() + share.before() * (i == KINDS ? 1 : i < CROSS_OUT ? LAYERS - 1 : LAYERS);
    }
    int count = Share(kind).count();
    if (kind == KINDS) sources()[MOST_TURNS] = turn + count;
#pragma unroll 1
    for (int i = 0; i < count; i++) sources()[turn + i] = source + i;
    if (kind != CROSS_OUT) return;
#pragma unroll 1
    for (int i = 0; i < contexts; i++) sources()[turn - contexts + i] = WEIGHT_UNITS + (layer * HEADS + at.share) * key_units(total) + i;
  }

  DEVICE unsigned char* slot(Position at) const { return shared + at.slot * SLOT_BYTES; }
  DEVICE uint64_t* arrival(Position at) const { return (uint64_t*)(shared + ARRIVALS_AT) + at.slot; }

  // Until the next `count` units have come, 32 at most: a lane waits for one.
  DEVICE void wait(int lane, int count) const {
    Position awaited = position.after(min(lane, count - 1));
    wait_for_arrival(arrival(awaited), awaited.parity);
    warp_sync();
  }

  DEVICE void ask(Position to, int unit) const {
    uint32_t source = sources()[unit];
    bool weight = source < WEIGHT_UNITS;
    uint32_t bytes = weight ? UNIT_BYTES : KEYS_BYTES, before = weight ? source * UNIT_BYTES : (source - WEIGHT_UNITS) * KEYS_BYTES;
    expect_bytes(arrival(to), bytes);
    copy_bulk(slot(to), (weight ? weights : keys_values) + before, bytes, arrival(to));
  }

  // Ask for the first units, a warp for one each. Where keys and values are among the block's, all blocks have made theirs.
  DEVICE void fill(const Place& at) {
#pragma unroll 1
    for (int unit = at.warp; unit < min(SLOTS, all()); unit += WARPS)
      if ((at.thread & 31) == 0) ask(position.after(unit), unit);
  }

  // To the unit behind the next `count`, WARPS at most, which all warps have multiplied: others take their places. A warp asks for one each, first those
  // of the second tile, which may not exist.
  DEVICE void advance(const Place& at, int count) {
    int unit = at.warp ^ 4;
    if (unit < count && turn + unit + SLOTS < all() && (at.thread & 31) == 0) ask(position.after(unit), turn + unit + SLOTS);
    position = position.after(count), turn += count;
    warp_sync();
  }
};
