// What requests are served with once the model is loaded. Built by main, immutable from then on,
// and outlives every call.
#pragma once

#include "engine/clock.h"
#include "engine/engine.h"
#include "engine/layer_plan.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/request_validation.h"
#include "tidal/inference/v1/model.pb.h"

namespace tidal::server {

struct ServingState {
  Engine* engine = nullptr;
  const LayerPlan* plan = nullptr;
  const Tokenizer* tokenizer = nullptr;  // null where the model has none
  const Clock* clock = nullptr;          // the engine's
  ValidationContext validation;
  inference::v1::GetModelInfoResponse model_info;
};

}  // namespace tidal::server
