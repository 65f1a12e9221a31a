#include "client/top/http_get.h"

#include <curl/curl.h>

#include <algorithm>
#include <cstdint>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace tidal::client {
namespace {

constexpr std::size_t kMaxBodyBytes = 64U << 20U;
constexpr int64_t kOk = 200;

// curl's callback: returning less than it was given ends the transfer with an error.
std::size_t AppendBody(const char* bytes, std::size_t size, std::size_t count, void* body) {
  auto* text = static_cast<std::string*>(body);
  const std::size_t num_bytes = size * count;
  if (text->size() + num_bytes > kMaxBodyBytes) return 0;
  text->append(bytes, num_bytes);
  return num_bytes;
}

}  // namespace

absl::StatusOr<std::string> HttpGet(const std::string& url, absl::Duration timeout) {
  if (!absl::StartsWith(url, "http://") && !absl::StartsWith(url, "https://")) {
    return absl::InvalidArgumentError(absl::StrCat("'", url, "' is no address of http or https"));
  }
  const std::unique_ptr<CURL, void (*)(CURL*)> curl(curl_easy_init(), curl_easy_cleanup);
  if (curl == nullptr) return absl::InternalError("libcurl cannot be initialised");
  std::string body;
  curl_easy_setopt(curl.get(), CURLOPT_URL, url.c_str());
  // To curl 0 would be no limit.
  const auto timeout_ms = std::max<int64_t>(absl::ToInt64Milliseconds(timeout), 1);
  curl_easy_setopt(curl.get(), CURLOPT_TIMEOUT_MS, static_cast<long>(timeout_ms));
  curl_easy_setopt(curl.get(), CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEFUNCTION, AppendBody);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEDATA, &body);
  const CURLcode code = curl_easy_perform(curl.get());
  if (code != CURLE_OK) {
    return absl::UnavailableError(absl::StrCat("GET ", url, ": ", curl_easy_strerror(code)));
  }
  long status = 0;
  curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, &status);
  if (status != kOk) {
    return absl::UnavailableError(absl::StrCat("GET ", url, ": HTTP status ", status));
  }
  return body;
}

}  // namespace tidal::client
