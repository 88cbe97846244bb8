// The kernel: the context, then the chain.

extern "C" __global__ void __launch_bounds__(THREADS, 1) adapter(const __grid_constant__ Parameters p) {
  SHARED(shared);
  int length = p.lengths[0];
  int thread = thread_index(), lane = thread & 31, block = block_index();
  Place at = {thread, thread / 32, lane >> 2, lane & 3, block % ROW_TILES * 16, block / ROW_TILES};
  unsigned long long launch = counted(p.counter);
  Exchange exchange;
  stamp(p.stamps, 0);
  // The others wait for this thread before they wait for bytes.
  if (thread == FETCHER) {
#pragma unroll
    for (int i = 0; i < 3; i++) begin_arrivals((uint64_t*)(shared + ARRIVALS_AT) + i);
    fence_copies();
  }
  Context context = {p, at, shared, exchange};
  KeysValues keys_values = {p, at, shared, exchange};
  int late = keys_values.late();
  context.project([&] {
    // Not ahead of what the projections wait for first.
    keys_values.load_weights(late, CONTEXT_STEPS);
    // Each launch before this one has left GRID counts; those of this one are fewer until this block leaves its own.
    launch /= GRID;
    exchange = Exchange(p, launch & 1);
  });
  stamp(p.stamps, 1);
  block_sync();
  keys_values.load_weights(0, late);
  context.finish_padding();
  context.finish(length);
  stamp(p.stamps, 3);
  keys_values.run();
  stamp(p.stamps, 4);
  block_sync();
  Clearing clearing(Exchange(p, ~launch & 1));
  if (thread == 0) count(p.counter);
  if (at.share >= GROUPS) return clearing.finish();
  Chain chain = {p, at, shared, exchange, context_keys(p, length), clearing, {}, 0};
  chain.load_residual();
  chain.run();
}
