#include "client/stream_call.h"

#include <utility>

#include "client/rpc_status.h"

namespace tidal::client {

StreamCall::StreamCall(inference::v1::GenerateStreamRequest request, EventCallback on_event,
                       DoneCallback on_done)
    : request_(std::move(request)), on_event_(std::move(on_event)), on_done_(std::move(on_done)) {}

void StreamCall::Start(inference::v1::InferenceService::Stub& stub,
                       std::shared_ptr<StreamCall> self) {
  self_ = std::move(self);
  stub.async()->GenerateStream(&context_, &request_, this);
  StartRead(&event_);
  StartCall();
}

void StreamCall::OnReadDone(bool ok) {
  if (!ok) return;  // OnDone follows.
  finished_ = event_.has_finished();
  on_event_(event_);
  StartRead(&event_);
}

void StreamCall::OnDone(const grpc::Status& status) {
  absl::Status result = FromGrpcStatus(status);
  if (result.ok() && !finished_) {
    result = absl::InternalError("the stream ended without a `finished` event");
  }
  const DoneCallback on_done = std::move(on_done_);
  // Perhaps the last reference. The program may end as soon as on_done has been called: nothing of
  // the call may be left for this thread then.
  self_.reset();
  on_done(result);
}

}  // namespace tidal::client
