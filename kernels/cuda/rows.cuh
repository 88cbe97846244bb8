// What products do with rows: sums for the norm before them, and the GELU behind them.

// Sums and sums of squares of the warp's places in 16 rows: products with ones, and of the rows with themselves, of which the diagonal counts. Adding
// them up would take ten times the instructions.
struct RowSums {
  float sums[4], squares[2][4];

  DEVICE void add(const uint4 (&a)[2]) {
    const uint32_t one = pack(1, 1);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      multiply_16(sums, a[half], one, one);
      multiply_16(squares[0], a[half], a[half].x, a[half].z);
      multiply_16(squares[1], a[half], a[half].y, a[half].w);
    }
  }

  // As [16, WARPS].
  DEVICE void leave(const Place& at, float2* row_sums) const {
    bool odd = at.group & 1;
    if (at.quad != at.group >> 1) return;
    row_sums[at.group * WARPS + at.warp] = make_float2(sums[0], odd ? squares[0][1] : squares[0][0]);
    row_sums[(at.group + 8) * WARPS + at.warp] = make_float2(sums[2], odd ? squares[1][3] : squares[1][2]);
  }
};

// Mean and 1 / deviation of a row, of the sums [16, WARPS] that its warps found; the lanes of a quad add those of two warps each.
DEVICE float2 row_statistics(const Place& at, const float2* sums, int row) {
  float4 two = *(const float4*)(sums + row * WARPS + at.quad * 2);
  return mean_and_scale(make_float2(quad_sum(two.x + two.z), quad_sum(two.y + two.w)), 1.0f / HIDDEN);
}
static_assert(WARPS == 8, "two warps a lane of a quad");

// The error function within 1.5e-7: Abramowitz and Stegun, 7.1.26.
DEVICE float gelu(float x) {
  float z = fabsf(x) * 0.7071067811865476f, t = reciprocal(1 + 0.3275911f * z);
  float tail = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  float erf = 1 - tail * power_of_two(-1.4426950408889634f * z * z);
  return 0.5f * x * (1 + (x < 0 ? -erf : erf));
}
