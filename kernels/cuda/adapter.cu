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

extern "C" __global__ void __launch_bounds__(THREADS, 1) adapter(const __grid_constant__ Parameters p) {
  SHARED(shared);
  int thread = thread_index(), lane = thread & 31, block = block_index();
  Place at = {thread, thread / 32, lane >> 2, lane & 3, block % ROW_TILES * 16, block / ROW_TILES};
  // Each launch before this one has left GRID counts; those of this one are fewer until this block leaves its own.
  unsigned long long launch = counted(p.counter) / GRID;
  Exchange exchange(p, launch & 1);
  if (thread < 2) begin_arrivals((uint64_t*)(shared + ARRIVALS_AT) + thread);
  stamp(p.stamps, 0);
  // Nobody sends before all are there.
  cluster_arrive();
  cluster_wait();
  KeysValues keys_values = {p, at, shared, exchange};
  make_context(p, at, shared, exchange, [&] {
    stamp(p.stamps, 1);
    keys_values.load_weights();
    prefetch_weights(p);
  });
  stamp(p.stamps, 3);
  keys_values.run();
  stamp(p.stamps, 4);
  fence_copies();
  block_sync();
  Clearing clearing(Exchange(p, ~launch & 1));
  if (thread == 0) count(p.counter);
  if (at.share >= GROUPS) return clearing.finish();
  Chain chain = {p, at, shared, exchange, clearing, {0, 0}, 0, LAST_STEP};
  // The first two products' weights, one to a region, where the context's tiles were.
#pragma unroll 1
  for (int turn = 0; turn < 2; turn++) chain.fetch(CROSS_OUT + turn, turn);
  chain.load_residual();
  chain.run();
}
