#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "engine/tokenizer/limits.h"
#include "engine/tokenizer/sentencepiece_tokenizer.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/tokenizer_json.h"

namespace tidal {
namespace {

using tokenization::kMaxTokenizerFileBytes;

// NOT_FOUND where there is no such file.
absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return absl::NotFoundError(absl::StrCat(path.string(), " does not exist"));
  }
  if (!std::filesystem::is_regular_file(path, error)) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(), " is not a regular file"));
  }
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (error || size > kMaxTokenizerFileBytes) {
    return absl::InvalidArgumentError(error ? absl::StrCat(path.string(), ": ", error.message())
                                            : absl::StrCat(path.string(), " has ", size,
                                                           " bytes, at most ",
                                                           kMaxTokenizerFileBytes, " allowed"));
  }
  std::string content(size, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(content.data(), static_cast<std::streamsize>(size))) {
    return absl::InvalidArgumentError(absl::StrCat("cannot read ", path.string()));
  }
  return content;
}

absl::Status InFile(const std::filesystem::path& path, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(path.string(), ": ", status.message()));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadSentencePiece(const std::filesystem::path& directory,
                                                             std::string model) {
  const std::filesystem::path config_path = directory / "tokenizer_config.json";
  tokenization::SentencePieceOptions options;
  absl::StatusOr<std::string> config = ReadFile(config_path);
  if (config.ok()) {
    absl::StatusOr<tokenization::SentencePieceOptions> read =
        tokenization::ReadSentencePieceOptions(*config);
    if (!read.ok()) return InFile(config_path, read.status());
    options = *std::move(read);
  } else if (!absl::IsNotFound(config.status())) {
    return config.status();
  }
  if (std::filesystem::path added = directory / "added_tokens.json"; ReadFile(added).ok()) {
    return InFile(added, absl::InvalidArgumentError("needs a tokenizer.json to be supported"));
  }
  auto tokenizer = tokenization::ParseSentencePieceModel(std::move(model), options);
  if (!tokenizer.ok()) return InFile(directory / "tokenizer.model", tokenizer.status());
  return tokenizer;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& directory) {
  const std::filesystem::path folder(directory);
  absl::StatusOr<std::string> json = ReadFile(folder / "tokenizer.json");
  if (json.ok()) {
    auto tokenizer = ParseTokenizerJson(*json);
    if (!tokenizer.ok()) return InFile(folder, tokenizer.status());
    return tokenizer;
  }
  if (!absl::IsNotFound(json.status())) return json.status();
  absl::StatusOr<std::string> model = ReadFile(folder / "tokenizer.model");
  if (model.ok()) return LoadSentencePiece(folder, *std::move(model));
  if (!absl::IsNotFound(model.status())) return model.status();
  return absl::NotFoundError(
      absl::StrCat(directory, " has neither tokenizer.json nor tokenizer.model"));
}

}  // namespace tidal
