// The kernel: the context, then the chain.

// The weights of the chain come from memory while the context is made: each block asks for a piece of each, a thread a product.
DEVICE void prefetch_weights(const Parameters& p) {
  int step = CROSS_OUT;
  for (int i = 0; i < thread_index() && step < LAST_STEP; i++) step = next_product(step);
  if (step >= LAST_STEP) return;
  int kind = kind_of(step), size = width_of(kind) * (kind == DOWN ? FF : HIDDEN), piece = divide_up(size / 64, GRID) * 64;
  int first = block_index() * piece;
  if (first < size) prefetch(p.products[step].weight + first, 2 * min(piece, size - first));
}

// What the next launch is to write.
DEVICE void clear(Element* exchange) {
  uint4* words = (uint4*)exchange;
  for (int i = block_index() * THREADS + thread_index(); i < EXCHANGE / 8; i += GRID * THREADS)
    words[i] = make_uint4(UNWRITTEN, UNWRITTEN, UNWRITTEN, UNWRITTEN);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) adapter(const __grid_constant__ Parameters p) {
  SHARED(shared);
  int thread = thread_index(), lane = thread & 31, block = block_index();
  Place at = {thread, thread / 32, lane >> 2, lane & 3, block % ROW_TILES * 16, block / ROW_TILES};
  // Of the launches before this one each left 3 GRID arrivals; those of this one are fewer until this block arrives.
  unsigned long long launch = arrived_before(p.counter) / (3 * GRID), target = launch * 3 * GRID;
  Element* exchange = p.exchange + (launch & 1) * EXCHANGE;
  if (thread < 2) begin_arrivals((uint64_t*)(shared + ARRIVALS_AT) + thread);
  stamp(p.stamps, 0);
  Chain chain = {p, at, shared, exchange, {0, 0}, 0, LAST_STEP};
#pragma unroll 1
  for (int phase = 0; phase < 2; phase++) {
    int tiles = phase ? context_tiles(p) : projection_tiles(p);
#pragma unroll 1
    for (int item = block; item < tiles; item += GRID)
      multiply_tile(at, shared, phase ? context_tile(p, item) : projection_tile(p, item), phase && item == block);
    stamp(p.stamps, 1 + 3 * phase);
    if (phase == 0) {
      int first = at.warp * GRID + block;
#pragma unroll 1
      for (int token = first; token == first || token < p.vlm_tokens + p.dino_tokens; token += GRID * WARPS)
        finish(p, at, token, [&] {
          if (token == first) wait_for_all(p.counter, target + GRID, [&] {
            if (block < context_tiles(p)) load_weights_ahead(at, shared, context_tile(p, block));
            clear(p.exchange + (~launch & 1) * EXCHANGE);
            prefetch_weights(p);
          });
        });
      stamp(p.stamps, 3);
    }
    wait_for_all(p.counter, target + (2 + phase) * GRID, [&] {
      if (phase == 0 || at.share >= GROUPS) return;
      // The first two products' weights, one to a region, where the context's tiles were.
      fence_copies();
#pragma unroll 1
      for (int turn = 0; turn < 2; turn++) chain.fetch(CROSS_OUT + turn, turn);
      chain.load_residual();
    });
    stamp(p.stamps, 5 + phase);
  }
  if (at.share < GROUPS) chain.run();
}
