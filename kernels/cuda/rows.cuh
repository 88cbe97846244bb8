// What products do with rows: sums for the norm before them, and the GELU behind them.

// Leave sums and sums of squares of the warp's places in 16 rows as [WARPS, 16]: products with ones, and of the rows with themselves, of which
// the diagonal counts. Adding them up would take ten times the instructions.
template <int BLOCKS>
DEVICE void sum_rows(const Place& at, const uint4 (&a)[BLOCKS][2], float2* row_sums) {
  float sums[4] = {}, squares[2][4] = {};
  const uint32_t one = pack(1, 1);
#pragma unroll
  for (int i = 0; i < BLOCKS; i++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      multiply_16(sums, a[i][half], one, one);
      multiply_16(squares[0], a[i][half], a[i][half].x, a[i][half].z);
      multiply_16(squares[1], a[i][half], a[i][half].y, a[i][half].w);
    }
  }
  bool odd = at.group & 1;
  if (at.quad != at.group >> 1) return;
  row_sums[at.warp * 16 + at.group] = make_float2(sums[0], odd ? squares[0][1] : squares[0][0]);
  row_sums[at.warp * 16 + at.group + 8] = make_float2(sums[2], odd ? squares[1][3] : squares[1][2]);
}

// Mean and 1 / deviation of a row, of the sums [WARPS, 16] that its warps found.
DEVICE float2 row_statistics(const float2* sums, int row) {
  float2 sum = {0, 0};
#pragma unroll
  for (int warp = 0; warp < WARPS; warp++) sum.x += sums[warp * 16 + row].x, sum.y += sums[warp * 16 + row].y;
  return mean_and_scale(sum, 1.0f / HIDDEN);
}

// The error function within 1.5e-7: Abramowitz and Stegun, 7.1.26.
DEVICE float gelu(float x) {
  float z = fabsf(x) * 0.7071067811865476f, t = reciprocal(1 + 0.3275911f * z);
  float tail = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  float erf = 1 - tail * power_of_two(-1.4426950408889634f * z * z);
  return 0.5f * x * (1 + (x < 0 ? -erf : erf));
}
