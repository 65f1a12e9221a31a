// Prints an answer as it comes: stream HOST:PORT PROMPT
#include <iostream>

#include "client/inference_client.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: " << argv[0] << " HOST:PORT PROMPT\n";
    return 2;
  }
  tidal::client::InferenceClient client(tidal::client::MakeChannel(argv[1]));
  tidal::inference::v1::GenerateStreamRequest request;
  request.set_text(argv[2]);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_max_new_tokens(64);
  request.mutable_attention()->set_mode(tidal::inference::v1::ATTENTION_MODE_TIDAL);
  request.mutable_attention()->set_token_budget(256);
  const absl::Status status = client.GenerateStream(request, [](const auto& event) {
    std::cout << event.delta().text() << std::flush;
    return true;  // false would cancel the call
  });
  std::cout << '\n';
  if (!status.ok()) {
    std::cerr << status << '\n';
    return 1;
  }
  return 0;
}
