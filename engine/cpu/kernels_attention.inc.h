// Attention's inner loops; see kernels.h. Included only by kernels.inc.h.

constexpr int kBlockTokens = 16;  // kBlockSize of the seam
constexpr float kInfinity = __builtin_inff();

// --- Prefill ---

void TransposeKeys(const float* block, int head_dim, float* tile) {
  for (int d = 0; d < head_dim; ++d) {
    for (int t = 0; t < kBlockTokens; ++t) tile[d * kKvTile + t] = block[t * head_dim + d];
  }
}

// A row's scores become exp(score - new max), zero from `end` on; returns the factor by which what
// the row had accumulated shrinks.
inline float UpdateSoftmax(float* scores, int end, int size, float* max, float* sum) {
  if (end <= 0) {
    for (int i = 0; i < size; i += kWidth) Store(scores + i, Vec{});
    return 1.0f;
  }
  for (int i = end; i < size; ++i) scores[i] = -kInfinity;
  Vec maxima = Load(scores);
  for (int i = kWidth; i < size; i += kWidth) maxima = Max(maxima, Load(scores + i));
  const float tile_max = MaxLane(maxima);
  const float new_max = tile_max > *max ? tile_max : *max;
  Vec sums = {};
  for (int i = 0; i < size; i += kWidth) {
    const Vec p = Exp(Load(scores + i) - new_max);
    Store(scores + i, p);
    sums += p;
  }
  const float shrink = Exp(Broadcast(*max - new_max))[0];
  *sum = *sum * shrink + Sum(sums);
  *max = new_max;
  return shrink;
}

template <int Rows>
void PrefillRows(const PrefillTileArguments& args, int first_row) {
  float* scores = args.scores;
  const int size = (args.num_positions + kTileWidth - 1) / kTileWidth * kTileWidth;
  const float* queries = args.queries + int64_t{first_row} * args.head_dim;
  for (int position = 0; position < size; position += kTileWidth) {
    Vec acc[Rows][kTileVectors] = {};
    MultiplyTile<Rows>(queries, args.head_dim, args.keys + position, kKvTile, args.head_dim, acc);
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < kTileVectors; ++v) {
        Store(scores + r * kKvTile + position + v * kWidth, acc[r][v]);
      }
    }
  }
  float shrink[Rows];
  for (int r = 0; r < Rows; ++r) {
    const int row = first_row + r;
    shrink[r] =
        UpdateSoftmax(scores + r * kKvTile, args.ends[row], size, args.max + row, args.sum + row);
  }
  float* output = args.output + int64_t{first_row} * args.padded_head_dim;
  for (int d = 0; d < args.padded_head_dim; d += kTileWidth) {
    Vec acc[Rows][kTileVectors];
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < kTileVectors; ++v) {
        acc[r][v] = Load(output + r * args.padded_head_dim + d + v * kWidth) * shrink[r];
      }
    }
    MultiplyTile<Rows>(scores, kKvTile, args.values + d, args.padded_head_dim, args.num_positions,
                       acc);
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < kTileVectors; ++v) {
        Store(output + r * args.padded_head_dim + d + v * kWidth, acc[r][v]);
      }
    }
  }
}

using PrefillRowsFunction = void (*)(const PrefillTileArguments&, int);

constexpr PrefillRowsFunction kPrefillRows[] = {
    PrefillRows<1>,  PrefillRows<2>,  PrefillRows<3>,
    PrefillRows<4>,  PrefillRows<5>,  PrefillRows<6>,
#if TIDAL_SIMD_WIDTH == 16
    PrefillRows<7>,  PrefillRows<8>,  PrefillRows<9>,
    PrefillRows<10>, PrefillRows<11>, PrefillRows<12>,
#endif
};

void PrefillTile(const PrefillTileArguments& args) {
  for (int row = 0; row < args.num_rows; row += kTileRows) {
    const int rows = args.num_rows - row < kTileRows ? args.num_rows - row : kTileRows;
    kPrefillRows[rows - 1](args, row);
  }
}

// --- Decode ---

// Sixteen successive rows of a block.
struct BlockRows {
  const float* first;
  int head_dim;
  const float* operator()(int t) const { return first + t * head_dim; }
};

// Sixteen rows anywhere.
struct GatheredRows {
  const float* row[kBlockTokens];
  const float* operator()(int t) const { return row[t]; }
};

// scores[t] = query . row(t), t in 0..15. `next` are rows to be brought into the cache meanwhile.
template <bool kPrefetch, class Rows>
inline void ScoreRows(const float* query, int head_dim, const Rows& rows, const Rows& next,
                      float* scores) {
  for (int t0 = 0; t0 < kBlockTokens; t0 += kWidth) {
    Vec acc[kWidth] = {};
    for (int d = 0; d < head_dim; d += kWidth) {
      const Vec q = Load(query + d);
      for (int t = 0; t < kWidth; ++t) {
        acc[t] = Fma(q, Load(rows(t0 + t) + d), acc[t]);
        if (kPrefetch && d % 16 == 0) __builtin_prefetch(next(t0 + t) + d);
      }
    }
    Store(scores + t0, SumEach(acc));
  }
}

// output[h][d] += sum_t p[h][t] * row(t)[d] for Heads heads and Vectors vectors of d, t ascending.
template <int Heads, int Vectors, class Rows>
inline void AddRows(const float* p, int64_t p_stride, const Rows& rows, int d, int count,
                    int head_dim, float* output) {
  Vec acc[Heads][Vectors];
  for (int h = 0; h < Heads; ++h) {
    for (int v = 0; v < Vectors; ++v) acc[h][v] = Load(output + h * head_dim + d + v * kWidth);
  }
  for (int t = 0; t < count; ++t) {
    Vec values[Vectors];
    for (int v = 0; v < Vectors; ++v) values[v] = Load(rows(t) + d + v * kWidth);
    for (int h = 0; h < Heads; ++h) {
      const Vec weight = Broadcast(p[h * p_stride + t]);
      for (int v = 0; v < Vectors; ++v) acc[h][v] = Fma(weight, values[v], acc[h][v]);
    }
  }
  for (int h = 0; h < Heads; ++h) {
    for (int v = 0; v < Vectors; ++v) Store(output + h * head_dim + d + v * kWidth, acc[h][v]);
  }
}

template <int Heads, class Rows>
inline void AddRowsOfHeads(const float* p, int64_t p_stride, const Rows& rows, int count,
                           int head_dim, float* output) {
  int d = 0;
  for (; d + 4 * kWidth <= head_dim; d += 4 * kWidth) {
    AddRows<Heads, 4>(p, p_stride, rows, d, count, head_dim, output);
  }
  for (; d < head_dim; d += kWidth) {
    AddRows<Heads, 1>(p, p_stride, rows, d, count, head_dim, output);
  }
}

// Rows i .. i + 15 of a run. Past the end they repeat the last one.
inline void FindRows(const DecodeRunArguments& args, int i, int64_t offset, BlockRows* rows) {
  const int last = args.num_positions - 1;
  const int32_t position =
      args.first_position + (i <= last ? i : last / kBlockTokens * kBlockTokens);
  const int64_t block = args.block_table[position / kBlockTokens];
  *rows = {args.kv.keys + block * args.kv.block_stride + offset, args.head_dim};
}

inline void FindRows(const DecodeRunArguments& args, int i, int64_t offset, GatheredRows* rows) {
  for (int t = 0; t < kBlockTokens; ++t) {
    const int index = i + t < args.num_positions ? i + t : args.num_positions - 1;
    const int32_t position = args.positions[index];
    const int64_t block = args.block_table[position / kBlockTokens];
    rows->row[t] = args.kv.keys + block * args.kv.block_stride + offset +
                   position % kBlockTokens * args.head_dim;
  }
}

template <class Rows>
inline void ScoreRun(const DecodeRunArguments& args) {
  Rows rows;
  Rows next;
  FindRows(args, 0, 0, &next);
  for (int i = 0; i < args.num_positions; i += kBlockTokens) {
    rows = next;
    FindRows(args, i + kBlockTokens, 0, &next);
    ScoreRows<true>(args.queries, args.head_dim, rows, next, args.scores + i);
    for (int h = 1; h < args.num_heads; ++h) {
      ScoreRows<false>(args.queries + h * args.head_dim, args.head_dim, rows, next,
                       args.scores + h * args.scores_stride + i);
    }
  }
}

// probabilities = exp(scores - max), zero past the end up to a multiple of 16.
inline void SoftmaxRun(const DecodeRunArguments& args, int head) {
  float* scores = args.scores + head * args.scores_stride;
  float* probabilities = args.probabilities + head * args.probabilities_stride;
  const int size = (args.num_positions + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
  for (int i = args.num_positions; i < size; ++i) scores[i] = -kInfinity;
  Vec maxima = Load(scores);
  for (int i = kWidth; i < size; i += kWidth) maxima = Max(maxima, Load(scores + i));
  const float max = MaxLane(maxima);
  Vec sums = {};
  for (int i = 0; i < size; i += kWidth) {
    const Vec p = Exp(Load(scores + i) - max);
    Store(probabilities + i, p);
    sums += p;
  }
  args.max[head] = max;
  args.sum[head] = Sum(sums);
}

template <class Rows>
inline void AddRun(const DecodeRunArguments& args) {
  for (int64_t i = 0; i < int64_t{args.num_heads} * args.head_dim; ++i) args.output[i] = 0.0f;
  Rows rows;
  Rows next;
  FindRows(args, 0, args.kv.value_offset, &next);
  for (int i = 0; i < args.num_positions; i += kBlockTokens) {
    rows = next;
    FindRows(args, i + kBlockTokens, args.kv.value_offset, &next);
    for (int t = 0; t < kBlockTokens; ++t) {
      for (int d = 0; d < args.head_dim; d += 16) __builtin_prefetch(next(t) + d);
    }
    const int left = args.num_positions - i;
    const int count = left < kBlockTokens ? left : kBlockTokens;
    const float* p = args.probabilities + i;
    float* output = args.output;
    int heads = args.num_heads;
    for (; heads >= 2; heads -= 2) {
      AddRowsOfHeads<2>(p, args.probabilities_stride, rows, count, args.head_dim, output);
      p += 2 * args.probabilities_stride;
      output += 2 * args.head_dim;
    }
    if (heads == 1) {
      AddRowsOfHeads<1>(p, args.probabilities_stride, rows, count, args.head_dim, output);
    }
  }
}

void DecodeRun(const DecodeRunArguments& args) {
  const bool gathered = args.positions != nullptr;
  gathered ? ScoreRun<GatheredRows>(args) : ScoreRun<BlockRows>(args);
  for (int head = 0; head < args.num_heads; ++head) SoftmaxRun(args, head);
  gathered ? AddRun<GatheredRows>(args) : AddRun<BlockRows>(args);
}

// --- Quest ---

inline Vec Min(Vec a, Vec b) { return -Max(-a, -b); }

void ScoreBlocks(const BlockBoundArguments& args) {
  for (int i = 0; i < args.num_blocks; ++i) {
    const float* minima = args.bounds + int64_t{args.block_table[i]} * args.block_stride;
    const float* maxima = minima + args.head_dim;
    Vec sums = {};
    for (int d = 0; d < args.head_dim; d += kWidth) {
      const Vec q = Load(args.query + d);
      sums += Max(q * Load(minima + d), q * Load(maxima + d));
    }
    args.scores[i] = Sum(sums);
  }
}

void BoundKeys(const float* keys, int num_keys, int head_dim, float* bounds) {
  for (int d = 0; d < head_dim; d += kWidth) {
    Vec minima = Load(keys + d);
    Vec maxima = minima;
    for (int t = 1; t < num_keys; ++t) {
      const Vec key = Load(keys + int64_t{t} * head_dim + d);
      minima = Min(minima, key);
      maxima = Max(maxima, key);
    }
    Store(bounds + d, minima);
    Store(bounds + head_dim + d, maxima);
  }
}
