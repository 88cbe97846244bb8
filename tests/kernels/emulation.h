// The instructions of kernels/cuda/primitives.cuh on a CPU, so that the persistent kernel's own source runs there.
// Every thread of every block is a fiber; whoever waits lets the others go on. Nothing here is quick.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include <ucontext.h>

#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define DEVICE inline
#define SHARED(name) unsigned char* name = emulation::current->block->shared.get()

struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct uint2 { uint32_t x, y; };
struct uint4 { uint32_t x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
template <typename T> T min(T a, T b) { return a < b ? a : b; }
template <typename T> T max(T a, T b) { return a < b ? b : a; }
inline float __uint_as_float(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline uint32_t __float_as_uint(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }

namespace emulation {

// Counts those who wait; the last to come lets all go.
struct Meeting { int waiting = 0, round = 0; };

struct Lane { uint32_t words[6]; float value; };

struct Warp { Meeting meeting; Lane lanes[32]; };

// Copies that were asked for, carried out at once in every second block, in the others as late as may be: when somebody waits for them.
struct Copy { void* target; const void* from; int bytes; void* arrival; };

struct Block {
  int index;
  std::vector<Copy> copies;
  Meeting meeting;
  Warp warps[8];
  std::unique_ptr<unsigned char[]> shared;
};

struct Fiber {
  Block* block;
  int thread;
  ucontext_t context;
  std::vector<unsigned char> stack;
  // Carried out as late as may be, too.
  std::deque<std::function<void()>> products;
  bool done = false;
};

inline Fiber* current;
inline ucontext_t scheduler;

inline void yield() { swapcontext(&current->context, &scheduler); }

inline void meet(Meeting& meeting, int count) {
  int round = meeting.round;
  if (++meeting.waiting == count) {
    meeting.waiting = 0;
    meeting.round++;
  } else {
    while (meeting.round == round) yield();
  }
}

inline Warp& warp() { return current->block->warps[current->thread / 32]; }

inline Lane& lane(int index) { return warp().lanes[index]; }

inline int own() { return current->thread % 32; }

inline float element(uint32_t word, int half) {
  uint32_t bits = half ? word >> 16 : word & 0xffff;
#ifdef HALF
  _Float16 value;
  uint16_t narrow = bits;
  std::memcpy(&value, &narrow, 2);
  return value;
#else
  return __uint_as_float(bits << 16);
#endif
}

inline uint32_t narrow(float x) {
  if (x != x) return 0x7fff;
#ifdef HALF
  _Float16 value = x;
  uint16_t bits;
  std::memcpy(&bits, &value, 2);
  return bits;
#else
  uint32_t bits = __float_as_uint(x);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#endif
}

// More turns of every thread than any launch here needs, and how many of them others have for one of a warp that is slow.
constexpr int PATIENCE = 20000, SLOWER = 8;

// Runs `body` in all threads of `blocks` blocks of 256, in turns, of which warp `slow` of every block has few, where it is one; false if they wait for
// something that never comes.
inline bool launch(int blocks, size_t shared_bytes, void (*body)(), int slow) {
  std::vector<std::unique_ptr<Block>> all;
  std::vector<std::unique_ptr<Fiber>> fibers;
  for (int index = 0; index < blocks; index++) {
    all.push_back(std::make_unique<Block>());
    all.back()->index = index;
    all.back()->shared.reset(new unsigned char[shared_bytes]);
    // What was not written must not look like anything useful.
    std::memset(all.back()->shared.get(), 0xff, shared_bytes);
    for (int thread = 0; thread < 256; thread++) {
      auto fiber = std::make_unique<Fiber>();
      fiber->block = all.back().get();
      fiber->thread = thread;
      fiber->stack.resize(1 << 16);
      getcontext(&fiber->context);
      fiber->context.uc_stack.ss_sp = fiber->stack.data();
      fiber->context.uc_stack.ss_size = fiber->stack.size();
      fiber->context.uc_link = nullptr;
      static void (*entry)();
      entry = body;
      makecontext(&fiber->context, +[] {
        entry();
        current->done = true;
        yield();
      }, 0);
      fibers.push_back(std::move(fiber));
    }
  }
  int turns = 0;
  for (bool busy = true; busy;) {
    if (turns++ == PATIENCE * (slow < 0 ? 1 : SLOWER)) return false;
    busy = false;
    for (auto& fiber : fibers)
      if (!fiber->done) {
        busy = true;
        if (fiber->thread / 32 == slow && turns % SLOWER > 0) continue;
        current = fiber.get();
        swapcontext(&scheduler, &current->context);
      }
  }
  // Nobody may leave while copies are under way to its shared memory.
  for (auto& block : all) if (!block->copies.empty()) return false;
  return true;
}

}  // namespace emulation

inline int thread_index() { return emulation::current->thread; }
inline int block_index() { return emulation::current->block->index; }
inline void block_sync() { emulation::meet(emulation::current->block->meeting, 256); }

inline float warp_exchange(float value, int mask) {
  using namespace emulation;
  lane(own()).value = value;
  meet(warp().meeting, 32);
  float other = lane(own() ^ mask).value;
  meet(warp().meeting, 32);
  return other;
}

inline bool warp_all(bool value) {
  using namespace emulation;
  lane(own()).value = value;
  meet(warp().meeting, 32);
  bool all = true;
  for (int i = 0; i < 32; i++) all = all && lane(i).value != 0;
  meet(warp().meeting, 32);
  return all;
}

inline uint32_t pack(float low, float high) { return emulation::narrow(low) | emulation::narrow(high) << 16; }
inline float2 unpack(uint32_t pair) { return {emulation::element(pair, 0), emulation::element(pair, 1)}; }

inline void multiply_add(float (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  using namespace emulation;
  const uint32_t words[6] = {a0, a1, a2, a3, b0, b1};
  std::memcpy(lane(own()).words, words, sizeof words);
  meet(warp().meeting, 32);
  int group = own() / 4, quad = own() % 4;
  for (int i = 0; i < 4; i++) {
    int row = group + i / 2 * 8, column = quad * 2 + i % 2;
    for (int k = 0; k < 16; k++) {
      int from = k % 8 / 2, half = k % 2;
      float a = element(lane(row % 8 * 4 + from).words[row / 8 + k / 8 * 2], half);
      sums[i] += a * element(lane(column * 4 + from).words[4 + k / 8], half);
    }
  }
  meet(warp().meeting, 32);
}

inline uint32_t transposed(uint32_t pair) {
  using namespace emulation;
  lane(own()).words[0] = pair;
  meet(warp().meeting, 32);
  uint32_t both = 0;
  for (int i = 0; i < 2; i++) both |= (lane((own() % 4 * 2 + i) * 4 + own() / 8).words[0] >> own() / 4 % 2 * 16 & 0xffff) << i * 16;
  meet(warp().meeting, 32);
  return both;
}

template <int TILES>
inline void multiply_stage(float (&sums)[TILES][4], const unsigned char* a, const unsigned char* b, bool add) {
  using namespace emulation;
  auto at = [](const unsigned char* rows, int row, int k) {
    uint32_t word;
    std::memcpy(&word, rows + row * 128 + ((k / 8 ^ row % 8) * 16) + k % 8 / 2 * 4, 4);
    return element(word, k % 2);
  };
  int row = current->thread / 32 % 4 * 16 + own() / 4, column = own() % 4 * 2;
  current->products.push_back([=, &sums] {
    for (int tile = 0; tile < TILES; tile++)
      for (int i = 0; i < 4; i++)
        for (int k = 0; k < 64; k++) sums[tile][i] = (k || add ? sums[tile][i] : 0) + at(a, row + i / 2 * 8, k) * at(b, column + tile * 8 + i % 2, k);
  });
}
template <int TILES>
inline void multiply_fragment(float (&sums)[TILES][4], uint4 a, const unsigned char* b) {
  using namespace emulation;
  const uint32_t words[4] = {a.x, a.y, a.z, a.w};
  std::memcpy(lane(own()).words, words, sizeof words);
  meet(warp().meeting, 32);
  // The place of `b` among the chunks of a row, which are swizzled by the row.
  const unsigned char* shared = current->block->shared.get();
  const unsigned char* rows = shared + (b - shared) / 128 * 128;
  int chunk = (b - rows) / 16;
  for (int tile = 0; tile < TILES; tile++)
    for (int i = 0; i < 4; i++)
      for (int k = 0; k < 16; k++) {
        int row = own() / 4 + i / 2 * 8, column = tile * 8 + own() % 4 * 2 + i % 2;
        uint32_t word;
        std::memcpy(&word, rows + column * 128 + ((chunk + k / 8) ^ column % 8) * 16 + k % 8 / 2 * 4, 4);
        sums[tile][i] += element(lane(row % 8 * 4 + k % 8 / 2).words[row / 8 + k / 8 * 2], k % 2) * element(word, k % 2);
      }
  meet(warp().meeting, 32);
}
inline void begin_multiplying() {}
inline void end_multiplying() {}
template <int LAST = 1>
inline void multiplied_before() {
  auto& products = emulation::current->products;
  for (; products.size() > LAST; products.pop_front()) products.front()();
  // What a lane does next may be on behalf of its warp.
  emulation::meet(emulation::warp().meeting, 32);
}
template <int TILES> void multiplied(float (&)[TILES][4]) { multiplied_before<0>(); }
inline void fence_copies() {}
inline void fence_copies_from_others() {}

inline float reciprocal(float x) { return 1 / x; }
inline float power_of_two(float x) { return std::exp2(x); }
inline float logarithm_of_two(float x) { return std::log2(x); }

inline void copy_async(void* target, const void* source, bool valid) {
  if (valid) std::memcpy(target, source, 16);
  else std::memset(target, 0, 16);
}
inline void copy_commit() {}
template <int PENDING> void copy_wait() {}

// The phases that are over, threads of a phase and how many of them are awaited, and bytes, less those that came; a phase ends when all are there.
struct Arrival { int16_t phase; int8_t threads, awaited; int32_t missing; };
static_assert(sizeof(Arrival) == sizeof(uint64_t));
inline void settle(Arrival* arrival) {
  if (arrival->awaited == 0 && arrival->missing == 0) arrival->phase++, arrival->awaited = arrival->threads;
}
inline void begin_arrivals(uint64_t* at, int threads = 1) { *(Arrival*)at = {0, (int8_t)threads, (int8_t)threads, 0}; }
inline void expect_bytes(uint64_t* at, int bytes) {
  auto* arrival = (Arrival*)at;
  arrival->awaited--, arrival->missing += bytes;
  settle(arrival);
}
inline void arrive(uint64_t* at) { expect_bytes(at, 0); }
inline void carry_out(const emulation::Copy& copy) {
  auto* arrival = (Arrival*)copy.arrival;
  std::memcpy(copy.target, copy.from, copy.bytes);
  arrival->missing -= copy.bytes;
  settle(arrival);
}
inline void warp_sync() { emulation::meet(emulation::warp().meeting, 32); }
inline void copy_bulk(void* target, const void* from, int bytes, uint64_t* at) {
  emulation::Copy copy = {target, from, bytes, at};
  if (block_index() % 2) carry_out(copy);
  else emulation::current->block->copies.push_back(copy);
}
inline void wait_for_arrival(uint64_t* at, int parity) {
  auto* arrival = (Arrival*)at;
  while ((arrival->phase & 1) == parity) {
    std::erase_if(emulation::current->block->copies, [&](const emulation::Copy& copy) {
      if (copy.arrival == at) carry_out(copy);
      return copy.arrival == at;
    });
    emulation::yield();
  }
}
inline uint4 load_fresh(const void* from) { uint4 v; std::memcpy(&v, from, 16); return v; }
inline void load_fresh_if(bool exists, uint4& v, const void* from) { if (exists) v = load_fresh(from); }
inline void publish(void* to, uint32_t word) { std::memcpy(to, &word, 4); }
inline void publish_four(void* to, uint2 words) { std::memcpy(to, &words, 8); }
inline uint2 load_pair(const void* from) { uint2 v; std::memcpy(&v, from, 8); return v; }
inline uint4 as_words(float a, float b, float c, float d) { return {__float_as_uint(a), __float_as_uint(b), __float_as_uint(c), __float_as_uint(d)}; }
inline void publish_eight(void* to, uint4 words) { std::memcpy(to, &words, 16); }
inline void count(unsigned long long* counter) { ++*counter; }
inline unsigned long long counted(const unsigned long long* counter) { return *counter; }
inline void release_count(unsigned long long* counter) { count(counter); }
inline unsigned long long acquire_count(const unsigned long long* counter) { return *counter; }

inline void renew(int&) {}
template <typename T> T* settled(T* address) { return address; }
inline void relax(int) { emulation::yield(); }
inline void pause(int) { emulation::yield(); }
// Of whole warps, as products are.
template <int TIMES>
uint32_t multiply_nothing() {
  warp_sync();
  return 0;
}
inline void pause_at_work(int) { multiply_nothing<1>(); }
inline void stamp(unsigned long long*, int) {}
