// An attention of either kernel, as a warp makes it of 32 keys and their values at a time.

// A warp's part of 32 keys and their values, as fragments.
struct KeyBlock {
  uint4 k[4][2], v[8];

  // From where the lane's own begin, each by `load(to, from)`.
  template <typename Load>
  DEVICE void load(const Element* keys, const Element* values, Load load) {
#pragma unroll
    for (int tile = 0; tile < 4; tile++)
#pragma unroll
      for (int half = 0; half < 2; half++) load(k[tile][half], keys + tile * 64 + half * 512);
#pragma unroll
    for (int tile = 0; tile < 8; tile++) load(v[tile], values + tile * 256);
  }

  // UNWRITTEN where any of them is.
  DEVICE uint32_t largest() const {
    uint32_t of_keys = 0, of_values = 0;
#pragma unroll
    for (int tile = 0; tile < 4; tile++) of_keys = max(of_keys, max(largest_word(k[tile][0]), largest_word(k[tile][1])));
#pragma unroll
    for (int tile = 0; tile < 8; tile++) of_values = max(of_values, largest_word(v[tile]));
    return max(of_keys, of_values);
  }
};

// Which of sixteen keys is the lane's first.
DEVICE int first_key(const Place& at) { return (at.group >> 1 & 1) * 8 + (at.group & 1); }

// What a warp found of rows `group` and `group` + 8: largest score, sum of weights and mixture of values.
struct Mixture {
  float largest[2] = {EMPTY, EMPTY}, total[2] = {}, mixed[8][4] = {};

  // Scores and values of 32 keys, of which those below `count` take part.
  DEVICE void add(const Place& at, const uint4 (&q)[2][2], const KeyBlock& own, int base, int count) {
    float scores[4][4] = {}, higher[2] = {largest[0], largest[1]};
#pragma unroll
    for (int tile = 0; tile < 4; tile++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        multiply_16(scores[tile], q[half][0], own.k[tile][half].x, own.k[tile][half].y);
        multiply_16(scores[tile], q[half][1], own.k[tile][half].z, own.k[tile][half].w);
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
        bool valid = base + at.quad * 8 + tile * 2 + (i & 1) < count;
        scores[tile][i] = valid ? scores[tile][i] * SCORE_SCALE : EMPTY;
        higher[i >> 1] = fmaxf(higher[i >> 1], scores[tile][i]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      higher[half] = fmaxf(higher[half], warp_exchange(higher[half], 1));
      higher[half] = fmaxf(higher[half], warp_exchange(higher[half], 2));
      float shrink = power_of_two(largest[half] - higher[half]);
      largest[half] = higher[half];
      total[half] *= shrink;
#pragma unroll
      for (int tile = 0; tile < 8; tile++) mixed[tile][half * 2] *= shrink, mixed[tile][half * 2 + 1] *= shrink;
    }
    uint32_t weights[4][2];
#pragma unroll
    for (int tile = 0; tile < 4; tile++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        scores[tile][i] = power_of_two(scores[tile][i] - largest[i >> 1]);
        total[i >> 1] += scores[tile][i];
      }
      weights[tile][0] = pack(scores[tile][0], scores[tile][1]);
      weights[tile][1] = pack(scores[tile][2], scores[tile][3]);
    }
#pragma unroll
    for (int tile = 0; tile < 8; tile++) {
      multiply_add(mixed[tile], weights[0][0], weights[0][1], weights[1][0], weights[1][1], own.v[tile].x, own.v[tile].y);
      multiply_add(mixed[tile], weights[2][0], weights[2][1], weights[3][0], weights[3][1], own.v[tile].z, own.v[tile].w);
    }
  }
};

// Leave the thread's four columns of the query, from `four` on, of row `row` in shared memory; once all threads have, take the fragments of it. There it lies as
// [HEAD / 16, lanes, 4 words], in the order of the registers that multiply it; of 16 places a lane has four of eight side by side, as of keys.
DEVICE void place_query(const Place& at, unsigned char* to, int row, int four, uint2 part, uint4 (&q)[2][2]) {
  uint32_t* words = (uint32_t*)to;
  int place = ((four >> 5) * 2 + (four >> 2 & 1)) * 128 + ((row & 7) * 4 + (four >> 3 & 3)) * 4 + (row >> 3);
  words[place] = part.x, words[place + 2] = part.y;
  block_sync();
#pragma unroll
  for (int i = 0; i < 4; i++) q[i >> 1][i & 1] = *(const uint4*)(words + i * 128 + (at.thread & 31) * 4);
}
