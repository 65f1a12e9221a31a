#include "client/command/prompt_source.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "client/command/utf8.h"

namespace tidal::client {
namespace {

absl::StatusOr<std::string> ReadAll(std::istream& stream, const std::string& name) {
  std::string text;
  std::array<char, 1U << 16U> buffer;
  while (stream.read(buffer.data(), buffer.size()) || stream.gcount() > 0) {
    text.append(buffer.data(), static_cast<std::size_t>(stream.gcount()));
    if (text.size() > kMaxPromptBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("the prompt from ", name, " is longer than ", kMaxPromptBytes, " bytes"));
    }
  }
  if (stream.bad()) return absl::InvalidArgumentError(absl::StrCat("cannot read ", name));
  return text;
}

absl::StatusOr<std::string> ReadFile(const std::string& path, Console& console) {
  if (path == "-") return ReadAll(console.in, "standard input");
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::InvalidArgumentError(absl::StrCat("cannot open ", path, ": ", strerror(errno)));
  }
  return ReadAll(file, path);
}

absl::StatusOr<std::string> ReadUnchecked(const PromptSource& source, Console& console) {
  if (source.text.has_value()) return *source.text;
  if (source.file.has_value()) return ReadFile(*source.file, console);
  if (!source.operand.empty()) {
    if (source.operand.front() == "-") return ReadFile("-", console);
    return source.operand.front();
  }
  if (console.in_is_terminal) {
    return absl::InvalidArgumentError(
        "no prompt: give it as an argument, with --prompt or --prompt_file, or on standard input");
  }
  return ReadFile("-", console);
}

}  // namespace

void AddPromptFlags(FlagSet& flags, PromptSource* source) {
  flags.Add("prompt", &source->text, "TEXT", "the prompt");
  flags.Add("prompt_file", &source->file, "PATH", "file that holds the prompt; - = standard input");
}

bool HasPrompt(const PromptSource& source) {
  return source.text.has_value() || source.file.has_value() || !source.operand.empty();
}

absl::StatusOr<std::string> ReadPrompt(const PromptSource& source, Console& console) {
  const std::size_t num_sources = (source.text.has_value() ? 1U : 0U) +
                                  (source.file.has_value() ? 1U : 0U) + source.operand.size();
  if (num_sources > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt is given ", num_sources, " times; give it once"));
  }
  absl::StatusOr<std::string> text = ReadUnchecked(source, console);
  if (!text.ok()) return text;
  if (text->size() > kMaxPromptBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the prompt has ", text->size(), " bytes; at most ", kMaxPromptBytes, " are allowed"));
  }
  if (const auto offset = FindInvalidUtf8(*text)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt is not UTF-8: invalid byte at offset ", *offset));
  }
  return text;
}

}  // namespace tidal::client
