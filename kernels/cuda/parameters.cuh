// What a launch is given, and the numbers that both kernels agree on.

// A NaN that the processor makes is 0x7fff in 16 bits and 0x7fffffff in 32.
constexpr uint32_t UNWRITTEN = 0xffffffffu;
constexpr int REST = 50;  // nanoseconds between two looks at what others write
constexpr float EPS = 1e-5f, EMPTY = -1e30f, SCORE_SCALE = 1.4426950408889634f / 8;

typedef unsigned short Element;

struct Parameters {
  const Element *vlm, *dino;
  const int* lengths;
  const float* table;
  const Element *vlm_weights, *dino_weights;
  const float *vlm_sums, *dino_sums;
  const Element* key_value_weights;
  const float* key_value_bias;
  const float* hidden_states;
  const Element* query;
  const Element* weights;  // of the chain's products
  const float* columns;    // and their biases and sums
  Element *exchange, *output;
  unsigned long long *counter, *stamps;
  int vlm_tokens, dino_tokens;
  // Of the context's products: steps counted for a tile of either encoder, 1 / those of a team's share, and the first that each team makes.
  int vlm_counted, dino_counted;
  float team_steps_inverse;
  int first_steps[TEAMS + 2];
};

// Tiles of 128 tokens of both encoders.
DEVICE int tiles_of(const Parameters& p) { return divide_up(p.vlm_tokens, 128) + divide_up(p.dino_tokens, 128); }

// Keys of the context that take part, of so many tokens of the VLM.
DEVICE int context_keys(const Parameters& p, int length) { return p.dino_tokens + min(max(length, 0), p.vlm_tokens); }
