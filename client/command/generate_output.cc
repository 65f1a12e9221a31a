#include "client/command/generate_output.h"

#include "absl/strings/str_format.h"
#include "client/command/event_json.h"
#include "client/command/generation_summary.h"

namespace tidal::client {
namespace {

namespace v1 = inference::v1;

class TextOutput final : public GenerateOutput {
 public:
  explicit TextOutput(Console& console) : console_(console) {}

  bool OnEvent(const v1::GenerateStreamResponse& event) override {
    switch (event.event_case()) {
      case v1::GenerateStreamResponse::kStarted:
        attention_ = event.started().attention();
        break;
      case v1::GenerateStreamResponse::kProgress:
        ShowProgress(event.progress());
        break;
      case v1::GenerateStreamResponse::kDelta:
        ShowText(event.delta().text());
        break;
      case v1::GenerateStreamResponse::kFinished:
        EndText();
        console_.err << SummaryText(event.finished().usage(), event.finished().timings(),
                                    attention_, event.finished().finish_reason(),
                                    event.finished().matched_stop());
        break;
      default:
        break;
    }
    return console_.out.good();
  }

  bool OnResponse(const v1::GenerateResponse& response) override {
    const v1::Choice& choice =
        response.choices_size() > 0 ? response.choices(0) : v1::Choice::default_instance();
    ShowText(choice.text());
    EndText();
    console_.err << SummaryText(response.usage(), response.timings(), response.attention(),
                                choice.finish_reason(), choice.matched_stop());
    return console_.out.good();
  }

  void OnFailure() override { EndText(); }

 private:
  void ShowProgress(const v1::GenerateStreamResponse::Progress& progress) {
    if (!console_.err_is_terminal || progress.total_tokens() <= 0) return;
    console_.err << absl::StreamFormat(
                        "\rprefill %d of %d tokens (%d %%)", progress.prefilled_tokens(),
                        progress.total_tokens(),
                        100LL * progress.prefilled_tokens() / progress.total_tokens())
                 << std::flush;
    progress_is_shown_ = true;
  }

  void ClearProgress() {
    if (progress_is_shown_) console_.err << "\r\033[K" << std::flush;
    progress_is_shown_ = false;
  }

  void ShowText(const std::string& text) {
    ClearProgress();
    console_.out << text << std::flush;
    if (!text.empty()) ends_in_newline_ = text.back() == '\n';
  }

  void EndText() {
    ClearProgress();
    if (console_.out_is_terminal && !ends_in_newline_) console_.out << "\n" << std::flush;
    ends_in_newline_ = true;
  }

  Console& console_;
  v1::EffectiveAttention attention_;
  bool progress_is_shown_ = false;
  bool ends_in_newline_ = true;
};

class JsonOutput final : public GenerateOutput {
 public:
  explicit JsonOutput(Console& console) : console_(console) {}

  bool OnEvent(const v1::GenerateStreamResponse& event) override {
    WriteJsonLine(EventJson(event), console_.out);
    return console_.out.good();
  }

  bool OnResponse(const v1::GenerateResponse& response) override {
    WriteJsonLine(ResponseJson(response), console_.out);
    return console_.out.good();
  }

  void OnFailure() override {}

 private:
  Console& console_;
};

}  // namespace

std::unique_ptr<GenerateOutput> MakeTextOutput(Console& console) {
  return std::make_unique<TextOutput>(console);
}

std::unique_ptr<GenerateOutput> MakeJsonOutput(Console& console) {
  return std::make_unique<JsonOutput>(console);
}

}  // namespace tidal::client
