// The kernel: the context, keys and values, then the chain.

// Of what is waited for by all blocks: `count_block` once a block is done, `await_blocks`, by whoever needs it, until all are.
DEVICE void count_block(const Place& at, unsigned long long* counter) {
  block_sync();
  if (at.thread == 0) release_count(counter);
}

DEVICE void await_blocks(const unsigned long long* counter, unsigned long long count) {
  while (acquire_count(counter) < count) relax(REST);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) adapter(const __grid_constant__ Parameters p) {
  SHARED(shared);
  int length = p.lengths[0], key_count = context_keys(p, length);
  int thread = thread_index(), lane = thread & 31, block = block_index();
  Place at = {thread, thread / 32, lane >> 2, lane & 3, block % ROW_TILES * 16, block / ROW_TILES};
  unsigned long long launch = counted(p.counter);
  Exchange exchange;
  stamp(p.stamps, 0);
  // The others wait for these threads before they wait for bytes.
  if (thread < SLOTS + 2 * KV_STAGES + 1) begin_arrivals((uint64_t*)(shared + ARRIVALS_AT) + thread, thread < SLOTS + KV_STAGES ? 1 : WARPS);
  fence_copies();
  Context context = {p, at, shared, exchange};
  KeysValues keys_values = {p, at, shared, exchange};
  context.project([&] {
    // Each launch before this one has left GRID counts; those of this one are fewer until this block leaves its own.
    launch /= GRID;
    exchange = Exchange(p, launch & 1);
  });
  stamp(p.stamps, 1);
  block_sync();
  // A warp that has less of the context than others. More weights at once would be in the way of the context's parts: they come while blocks are counted.
  bool last_warp = at.warp == WARPS - 1;
  if (last_warp && lane == 0) keys_values.begin(0, 1);
  context.finish_padding();
  context.finish(length);
  count_block(at, p.counter + 1);
  Stream stream = {shared, (const unsigned char*)p.weights, (const unsigned char*)exchange.keys_values, {0, 0}, 0};
  if (last_warp) {
    if (lane == 0) keys_values.begin(1, KV_STAGES);
    stream.begin(at, key_count, keys_values.total());
    // The warp multiplies together.
    warp_sync();
  }
  if (thread == FETCHER) await_blocks(p.counter + 1, (launch + 1) * GRID);
  stamp(p.stamps, 3);
  keys_values.run();
  count_block(at, p.counter + 2);
  bool chained = block < larger(ROW_TILES * GROUPS, WIDE_TILES * WIDE_GROUPS), attends = at.share < HEADS;
  // Where keys and values come first, not before all blocks have made theirs; fenced by every thread that asks for them, now or later.
  if (attends) {
    if (thread == 0) await_blocks(p.counter + 2, (launch + 1) * GRID);
    block_sync();
    fence_copies_from_others();
  }
  // Where the stages of keys and values were, which nothing but products and copies has touched.
  if (chained) stream.fill(at);
  if (thread == 0 && !attends) await_blocks(p.counter + 2, (launch + 1) * GRID);
  block_sync();
  stamp(p.stamps, 4);
  Clearing clearing(Exchange(p, ~launch & 1));
  if (thread == 0) count(p.counter);
  if (!chained) return clearing.finish();
  Chain chain = {p, at, shared, exchange, clearing, stream, key_count, {}, 0};
  chain.load_residual();
  chain.run();
}
