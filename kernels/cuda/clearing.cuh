// Makes the other set, and what is cleared with it, ready for the next launch, some of it in every step while answers are on their way.
struct Clearing {
  uint4* next;
  int left, each;  // times that the thread clears, in all and in a step
  DEVICE Clearing(const Exchange& other) {
    int count = (int)(other.end - other.cleared), first = block_index() * THREADS + thread_index();
    next = other.cleared + first;
    left = divide_up(max(count - first, 0), GRID * THREADS), each = divide_up(count, GRID * THREADS * WAITS);
  }
  DEVICE void advance() {
#pragma unroll 1
    for (int i = 0; i < each && left > 0; i++, left--, next += GRID * THREADS) *next = make_uint4(UNWRITTEN, UNWRITTEN, UNWRITTEN, UNWRITTEN);
  }
  DEVICE void finish() {
    while (left > 0) advance();
  }
};
