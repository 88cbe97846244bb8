// The keys and values that all layers read from the context, placed as fragments are read.

constexpr int CONTEXT_STEPS = HIDDEN / 64, KEY_VALUE_COLUMNS = 2 * LAYERS * HIDDEN;

// Where each kernel has, of `padded` tokens from `first` on, a column of one's keys and values, of a layer's keys where `part` is even.
DEVICE Element* kept_place(Element* first, int padded, int part, int token, int column);

// Keep columns `first_column` on of sixteen tokens, in the order of `side_by_side`, of which a thread has four columns of two keys, or four values of
// two columns: both lie in memory 64 elements apart. The rows of `total` that do not exist are written as far as the buffer goes.
template <int TILES>
DEVICE void keep_keys_values(const Place& at, const Exchange& exchange, int total, int token, int first_column, const float (&sums)[TILES][4]) {
  int padded = divide_up(total, 32) * 32;
  if (token >= padded) return;
  Element* own = exchange.keys_values + ((at.group >> 1) * 4 + (at.group & 1)) * 32 + at.quad * 4;
#pragma unroll
  for (int unit = 0; unit < TILES / 2; unit++) {
    int column = first_column + unit * 16, part = column / HIDDEN;
    if (column >= KEY_VALUE_COLUMNS) break;
    column -= part * HIDDEN;
    bool values = part % 2;
    Element* to = kept_place(own, padded, part, token, column);
    uint32_t words[2][2];
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const float* x = sums[unit * 2 + i] + half * 2;
        words[half][i] = pack(x[0], x[1]);
      }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      uint2 down = {transposed(words[0][i]), transposed(words[1][i])};
      publish_four(to + i * 64, uint2{values ? down.x : words[i][0], values ? down.y : words[i][1]});
    }
  }
}
