// Makes the other set ready for the next launch, some of it in every step while answers are on their way.
struct Clearing {
  uint4 *next, *end;
  int each;
  DEVICE Clearing(const Exchange& other) {
    next = (uint4*)other.chain + block_index() * THREADS + thread_index();
    end = (uint4*)other.end;
    each = divide_up((int)(end - (uint4*)other.chain), GRID * THREADS * WAITS);
  }
  DEVICE void advance() {
#pragma unroll 1
    for (int i = 0; i < each && next < end; i++, next += GRID * THREADS) *next = make_uint4(UNWRITTEN, UNWRITTEN, UNWRITTEN, UNWRITTEN);
  }
  DEVICE void finish() {
    while (next < end) advance();
  }
};
