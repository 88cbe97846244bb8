// What the warps of a block make of a product, each over its slice of the contracted axis, and their sum: left in 16 bits, two columns of the rows
// `group` and `group` + 8 a lane, and added by the tensor cores, which takes fewer instructions than adding.

// In fp16 smaller, because raw sums may be more than fp16 holds.
#ifdef HALF
constexpr float SLICE_SCALE = 1.0f / 64;
#else
constexpr float SLICE_SCALE = 1;
#endif

DEVICE uint2 slice_of(const float (&sums)[4]) {
  return uint2{pack(sums[0] * SLICE_SCALE, sums[1] * SLICE_SCALE), pack(sums[2] * SLICE_SCALE, sums[3] * SLICE_SCALE)};
}

// Eight columns of a diagonal, of ones or of another number.
DEVICE uint32_t diagonal(const Place& at, float one) { return at.quad == at.group >> 1 ? pack(one, 0) << (at.group & 1) * 16 : 0; }

// Add the lane's slices of two warps.
DEVICE void add_two(const Place& at, float (&sums)[4], const uint2* slices) {
  uint2 first = slices[0], second = slices[32];
  uint32_t ones = diagonal(at, 1 / SLICE_SCALE);
  multiply_add(sums, first.x, first.y, second.x, second.y, ones, ones);
}
