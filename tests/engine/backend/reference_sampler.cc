#include "tests/engine/backend/reference_sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/backend/philox.h"

namespace tidal::testing {
namespace {

int32_t CountOf(const std::vector<int32_t>& ids, int32_t id) {
  return static_cast<int32_t>(std::count(ids.begin(), ids.end(), id));
}

void Penalise(const SamplingParams& params, const SamplerHistory& history,
              std::vector<float>* logits) {
  for (const LogitBias& entry : params.logit_bias) {
    (*logits)[static_cast<size_t>(entry.token_id)] += entry.bias;
  }
  for (size_t i = 0; i < logits->size(); ++i) {
    float& logit = (*logits)[i];
    const int32_t id = static_cast<int32_t>(i);
    const int32_t count = CountOf(history.generated, id);
    if (count > 0 || CountOf(history.prompt, id) > 0) {
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    }
    if (count > 0) logit -= params.presence_penalty;
    logit -= params.frequency_penalty * static_cast<float>(count);
  }
  if (static_cast<int32_t>(history.generated.size()) < params.min_new_tokens) {
    for (const int32_t id : params.suppressed_token_ids) {
      (*logits)[static_cast<size_t>(id)] = -std::numeric_limits<float>::infinity();
    }
  }
}

std::vector<int32_t> MostProbableFirst(const std::vector<float>& logits) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  return ids;
}

}  // namespace

KeptTokens ReferenceKeep(const SamplingParams& params, const SamplerHistory& history,
                         std::vector<float> logits) {
  Penalise(params, history, &logits);
  if (params.temperature > 0) {
    for (float& logit : logits) logit /= params.temperature;
  }
  std::vector<int32_t> ids = MostProbableFirst(logits);
  if (params.temperature == 0) ids.resize(1);
  if (params.top_k > 0) ids.resize(std::min(ids.size(), static_cast<size_t>(params.top_k)));
  const float max = logits[static_cast<size_t>(ids[0])];
  const auto weight = [&](int32_t id) {
    return std::exp(double{logits[static_cast<size_t>(id)]} - max);
  };
  double total = 0;
  for (const int32_t id : ids) total += weight(id);
  double mass = 0;
  for (size_t i = 0; i < ids.size() && params.top_p < 1; ++i) {
    mass += weight(ids[i]);
    if (mass >= params.top_p * total) ids.resize(i + 1);
  }
  std::erase_if(ids, [&](int32_t id) { return weight(id) < params.min_p; });
  return {ids, logits};
}

SampledToken ReferenceSample(const SamplingParams& params, const SamplerHistory& history,
                             const std::vector<float>& logits) {
  const KeptTokens kept = ReferenceKeep(params, history, logits);
  SampledToken token;
  token.token_id = kept.ids[0];
  float best = -std::numeric_limits<float>::infinity();
  for (const int32_t id : kept.ids) {
    if (params.temperature == 0) break;
    const float value =
        kept.logits[static_cast<size_t>(id)] +
        GumbelNoise(params.seed, history.generated.size(), static_cast<uint32_t>(id));
    if (value > best || (value == best && id < token.token_id)) {
      best = value;
      token.token_id = id;
    }
  }
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit});
  const auto logprob = [&](int32_t id) {
    return static_cast<float>(double{logits[static_cast<size_t>(id)]} - std::log(sum));
  };
  if (params.return_logprobs) {
    token.logprob = logprob(token.token_id);
    const std::vector<int32_t> ids = MostProbableFirst(logits);
    for (int32_t i = 0; i < params.num_top_logprobs; ++i) {
      const int32_t id = ids[static_cast<size_t>(i)];
      token.top_logprobs.push_back({id, logprob(id)});
    }
  }
  return token;
}

}  // namespace tidal::testing
