#include "absl/strings/escaping.h"
#include "client/command/commands.h"
#include "client/command/event_json.h"
#include "client/command/prompt_source.h"

namespace tidal::client {
namespace {

void PrintTokens(const inference::v1::TokenizeResponse& response, Console& console) {
  for (int i = 0; i < response.token_ids_size(); ++i) {
    console.out << response.token_ids(i) << "\t";
    if (i < response.tokens_size()) console.out << absl::Utf8SafeCEscape(response.tokens(i));
    console.out << "\n";
  }
  console.out << std::flush;
  console.err << response.token_ids_size() << " tokens\n";
}

}  // namespace

ExitCode RunTokenize(absl::Span<const std::string> arguments, CommandContext& context) {
  PromptSource source;
  bool add_special_tokens = true;
  FlagSet flags;
  AddPromptFlags(flags, &source);
  flags.Add("add_special_tokens", &add_special_tokens, "",
            "begin with the begin-of-sequence token, as generate does; on by default");
  if (const auto done = ParseCommand("tidal-client tokenize [FLAGS] [TEXT | -]", flags, arguments,
                                     context, &source.operand)) {
    return *done;
  }
  absl::StatusOr<std::string> text = ReadPrompt(source, context.console);
  if (!text.ok()) return ReportUsageError(text.status(), context.console);

  inference::v1::TokenizeRequest request;
  request.set_text(*std::move(text));
  request.set_add_special_tokens(add_special_tokens);
  const auto response = context.MakeClient().Tokenize(request, context.MakeCallOptions());
  if (!response.ok()) return context.Fail(response.status());
  if (context.common.json) {
    WriteJsonLine(TokensJson(*response), context.console.out);
  } else {
    PrintTokens(*response, context.console);
  }
  return context.console.out.good() ? ExitCode::kOk : ExitCode::kBrokenPipe;
}

}  // namespace tidal::client
