// What the persistent kernel asks of the hardware beyond plain arithmetic. tests/kernels/emulation.h offers the same on a CPU.

typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;

#define DEVICE __device__ __forceinline__
#define SHARED(name) extern __shared__ __align__(1024) unsigned char name##_memory[]; unsigned char* name = shared_start(name##_memory)

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int block_index() { return blockIdx.x; }
DEVICE void block_sync() { __syncthreads(); }

// An address is computed once, not with each use.
template <typename T>
DEVICE T* settled(T* address) {
  asm volatile("" : "+l"(address));
  return address;
}

// Where shared memory begins, in a register: the compiler would otherwise ask the hardware at every use, and wait for loads that are on their way.
DEVICE unsigned char* shared_start(unsigned char* memory) {
  memory = settled(memory);
  __builtin_assume(__isShared(memory));
  return memory;
}

DEVICE void warp_sync() { __syncwarp(); }
DEVICE bool warp_all(bool value) { return __all_sync(0xffffffffu, value); }
DEVICE float warp_exchange(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// Two floats as a pair of 16-bit elements, rounded to nearest; a NaN becomes 0x7fff.
DEVICE uint32_t pack(float low, float high) {
  uint32_t pair;
#ifdef HALF
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#endif
  return pair;
}

DEVICE float2 unpack(uint32_t pair) {
  float2 value;
#ifdef HALF
  asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
      : "=f"(value.x), "=f"(value.y) : "r"(pair));
#else
  value.x = __uint_as_float(pair << 16);
  value.y = __uint_as_float(pair & 0xffff0000u);
#endif
  return value;
}

// Of 8 x 8 elements over a warp, a pair of lane 4 r + c being row r and columns 2 c and 2 c + 1, the same of their transpose.
DEVICE uint32_t transposed(uint32_t pair) {
  uint32_t other;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(other) : "r"(pair));
  return other;
}

// sums += a [16, 16] b [16, 8]; which lane holds what: PTX ISA, "Matrix Fragments for mma.m16n8k16".
DEVICE void multiply_add(float (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                         uint32_t b1) {
#ifdef HALF
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

DEVICE uint64_t matrix_descriptor(const unsigned char* rows) {
  // Address, the 1,024 bytes to the next eight rows, and the 128-byte swizzle; PTX ISA, "Matrix Descriptor Format".
  uint64_t address = __cvta_generic_to_shared(rows);
  return (address & 0x3ffff) >> 4 | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

// {multiply_warpgroup}

// Begin sums [64, 8 TILES] += a [64, 64] b [8 TILES, 64] transposed, or = if not `add`, by four warps together, done after `multiplied`. Both lie in shared
// memory, 128 bytes a row, their 16-byte chunks swizzled by `staged` of projection.cuh; a warp's 16 rows of the result lie as those of
// `multiply_add` do.
template <int TILES>
DEVICE void multiply_stage(float (&sums)[TILES][4], const unsigned char* a, const unsigned char* b, bool add) {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  uint64_t from_a = matrix_descriptor(a), from_b = matrix_descriptor(b);
#pragma unroll
  for (int k = 0; k < 4; k++) multiply_warpgroup(sums, from_a + k * 2, from_b + k * 2, k > 0 || add);
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// The same for 16 places, += only, with `a` in registers that lie as those of `multiply_add` do; between `begin_multiplying` and `end_multiplying`.
template <int TILES>
DEVICE void multiply_fragment(float (&sums)[TILES][4], uint4 a, const unsigned char* b) {
  multiply_warpgroup(sums, a, matrix_descriptor(b), 1);
}

DEVICE void begin_multiplying() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

DEVICE void end_multiplying() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Wait for all but the last stages begun.
template <int LAST = 1>
DEVICE void multiplied_before() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(LAST) : "memory"); }

// What was written to shared memory becomes visible to `multiply_stage` and `copy_bulk`, once all threads have passed a barrier.
DEVICE void fence_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The same of global memory, for `copy_bulk` from what others wrote before they counted, once the count was seen.
DEVICE void fence_copies_from_others() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

DEVICE float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

DEVICE float logarithm_of_two(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 16 bytes to shared memory without passing through registers; zeros where `valid` is false.
DEVICE void copy_async(void* target, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"((uint32_t)__cvta_generic_to_shared(target)), "l"(source), "r"(valid ? 16 : 0) : "memory");
}

DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING>
DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory"); }

// Copies of many bytes to shared memory, counted by `arrival` [1], which is waited for in turns of even and odd `parity`. It may count threads as well: a
// turn is over once as many have arrived as it was begun with, one of them by what it expects, and the bytes are there.
DEVICE uint32_t shared_address(const void* address) { return (uint32_t)__cvta_generic_to_shared(address); }

DEVICE void begin_arrivals(uint64_t* arrival, int threads = 1) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(shared_address(arrival)), "r"(threads) : "memory");
}

DEVICE void arrive(uint64_t* arrival) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(shared_address(arrival)) : "memory");
}

DEVICE void expect_bytes(uint64_t* arrival, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :: "r"(shared_address(arrival)), "r"(bytes) : "memory");
}

DEVICE void copy_bulk(void* target, const void* from, int bytes, uint64_t* arrival) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               :: "r"(shared_address(target)), "l"(from), "r"(bytes), "r"(shared_address(arrival)) : "memory");
}

DEVICE void wait_for_arrival(uint64_t* arrival, int parity) {
  asm volatile("{.reg .pred p; again%=: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra again%=;}"
               :: "r"(shared_address(arrival)), "r"(parity) : "memory");
}

// Past the first-level cache, which does not see what other blocks write. Volatile, so that it stays where it stands.
DEVICE uint4 load_fresh(const void* from) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
  return v;
}

// The same where it exists, else anything; without a branch, behind which the compiler would wait for what was asked for before.
DEVICE void load_fresh_if(bool exists, uint4& v, const void* from) {
  asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];}"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from), "r"((uint32_t)exists) : "memory");
}

DEVICE void publish(void* to, uint32_t word) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" :: "l"(to), "r"(word) : "memory");
}

DEVICE void publish_four(void* to, uint2 words) {
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" :: "l"(to), "r"(words.x), "r"(words.y) : "memory");
}

DEVICE uint2 load_pair(const void* from) {
  uint2 v;
  asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from) : "memory");
  return v;
}

DEVICE uint4 as_words(float a, float b, float c, float d) {
  return make_uint4(__float_as_uint(a), __float_as_uint(b), __float_as_uint(c), __float_as_uint(d));
}

DEVICE void publish_eight(void* to, uint4 words) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :: "l"(to), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w) : "memory");
}

DEVICE void count(unsigned long long* counter) { asm volatile("red.relaxed.gpu.global.add.u64 [%0], 1;" :: "l"(counter) : "memory"); }

DEVICE unsigned long long counted(const unsigned long long* counter) {
  unsigned long long count;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(count) : "l"(counter) : "memory");
  return count;
}

// The same two, so that what was written before the count is there for those who saw it. Unlike with a fence, whoever looks waits for no writes of its own.
DEVICE void release_count(unsigned long long* counter) {
  asm volatile("red.release.gpu.global.add.u64 [%0], 1;" :: "l"(counter) : "memory");
}

DEVICE unsigned long long acquire_count(const unsigned long long* counter) {
  unsigned long long count;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(count) : "l"(counter) : "memory");
  return count;
}

// What was computed from it is computed again rather than kept in registers.
DEVICE void renew(int& value) { asm volatile("" : "+r"(value)); }

DEVICE void relax(int nanoseconds) { __nanosleep(nanoseconds); }

// Products of nothing, one after the other, some 40 cycles each: zero. The clock of an H200 falls from 1.98 to 1.80 GHz while tensor cores are at work, and to
// 1.64 to 1.71 for a microsecond when they begin again after a rest of one, which is what a chain of short steps does all the time. One product every 400
// cycles keeps it at 1.80. A warp multiplies together.
template <int TIMES>
DEVICE uint32_t multiply_nothing() {
  float sums[4] = {};
#pragma unroll 1
  for (int i = 0; i < TIMES; i++)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%4,%4}, {%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) : "r"(0));
  return __float_as_uint(sums[0]);
}

DEVICE void pause(int cycles) {
  for (uint32_t start = clock(); (uint32_t)clock() - start < cycles;);
}

// The same of a whole warp, at work, whatever its lanes did before.
DEVICE void pause_at_work(int cycles) {
  warp_sync();
  for (uint32_t start = clock(); (uint32_t)clock() - start < cycles + multiply_nothing<1>(););
}

// Where the time goes, for kernels that are compiled to tell.
DEVICE void stamp(unsigned long long* stamps, int index) {
#ifdef STAMPS
  if (threadIdx.x == 0) stamps[blockIdx.x * STAMPS + index] = clock64();
#endif
}
