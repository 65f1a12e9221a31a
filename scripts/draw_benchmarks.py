#!/usr/bin/env python3
"""Draws and tabulates what tidal-bench has measured on an H200.

Reads docs/benchmarks/h200/*.json, writes docs/images/decode-{latency,attention}-{light,dark}.svg,
and prints the tables of docs/benchmarks/README.md. Needs matplotlib.

  python3 scripts/draw_benchmarks.py
"""

import json
import pathlib

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot, ticker  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "benchmarks" / "h200"
IMAGES = ROOT / "docs" / "images"
THEMES = {
    "light": {"text": "#1f2328", "grid": "#d1d9e0", "background": "#ffffff",
              "colors": ["#0969da", "#bc4c00", "#1a7f37"]},
    "dark": {"text": "#f0f6fc", "grid": "#3d444d", "background": "#0d1117",
             "colors": ["#4493f8", "#f0883e", "#3fb950"]},
}
DECODES = ["decode_7b_b1", "decode_7b_b4", "decode_8b_b1", "decode_8b_b8"]
CONTEXTS = [10240, 32768, 102400]
# Layers that attend to everything in the plan measured: the others inherit a selection.
NUM_FULL_LAYERS = 2
NUM_SELECT_LAYERS = 2


def load(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def print_decode_table():
    print("| model | streams | context | full: ms (p10, median, p90) | of the floor | "
          "tidal: ms (p10, median, p90) | of the floor | full : tidal |")
    print("|---|---|---|---|---|---|---|---|")
    for name in DECODES:
        results = load(name)
        rows = {}
        for row in results["results"]:
            rows.setdefault((row["streams"], row["context_tokens"]), {})[row["method"]] = row
        for (streams, context), methods in rows.items():
            cells = [results["model"], str(streams), f"{context:,}"]
            for method in ("full", "tidal"):
                ms = methods[method]["step_ms"]
                cells.append(f"{ms['p10']:.2f}, {ms['median']:.2f}, {ms['p90']:.2f}")
                cells.append(f"{methods[method]['floor_share']:.1%}")
            full, tidal = (methods[m]["step_ms"]["median"] for m in ("full", "tidal"))
            cells.append(f"{full / tidal:.2f}")
            print(f"| {' | '.join(cells)} |")


def print_attention_table():
    print("\n| context | kind | us a layer (p10, median, p90) | floor | of the floor |")
    print("|---|---|---|---|---|")
    for row in load("attention_7b_b1")["results"]:
        us = row["layer_us"]
        floor = row["floor_us"]
        if row["kind"] == "prefill":
            continue
        print(f"| {row['context_tokens']:,} | {row['kind']} | {us['p10']:.1f}, {us['median']:.1f}, "
              f"{us['p90']:.1f} | {floor:.1f} | {floor / us['median']:.1%} |")


def make_axes(theme, num_axes):
    figure, axes = pyplot.subplots(1, num_axes, figsize=(10, 3.6), layout="constrained",
                                   facecolor=theme["background"])
    for axis in axes:
        axis.set_facecolor(theme["background"])
        axis.tick_params(colors=theme["text"])
        axis.grid(axis="y", color=theme["grid"], linewidth=0.6)
        axis.set_axisbelow(True)
        for spine in axis.spines.values():
            spine.set_color(theme["grid"])
    return figure, axes


def label(axis, theme, title, x, y):
    axis.set_title(title, color=theme["text"], fontsize=10)
    axis.set_xlabel(x, color=theme["text"])
    axis.set_ylabel(y, color=theme["text"])


def draw_latency(theme):
    """A step's latency against the budget, beside full attention's."""
    sweep = load("budgets_7b_b1")["results"]
    decode = load("decode_7b_b1")["results"]
    figure, axes = make_axes(theme, len(CONTEXTS))
    for axis, context in zip(axes, CONTEXTS):
        def at(rows, method, context=context):
            return [r for r in rows if r["method"] == method
                    and context <= r["context_tokens"] < 1.01 * context]
        points = sorted((r["token_budget"], r["step_ms"]["median"])
                        for r in at(sweep, "tidal") + at(decode, "tidal"))
        full = at(decode, "full")[0]["step_ms"]["median"]
        axis.axhline(full, color=theme["colors"][1], linestyle="--", label="full attention")
        axis.plot(*zip(*points), color=theme["colors"][0], marker="o", label="TidalDecode")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.0f}"))
        axis.set_ylim(0, full * 1.15)
        label(axis, theme, f"{context:,} tokens of context", "token budget", "ms a token")
    axes[0].legend(loc="lower left", frameon=False, labelcolor=theme["text"])
    return figure


def draw_attention(theme):
    """Attention's time of a step by kind of layer, with 32 and with 64 layers."""
    times = {(r["context_tokens"], r["kind"]): r["layer_us"]["median"] / 1000
             for r in load("attention_7b_b1")["results"]}
    figure, axes = make_axes(theme, 2)
    for axis, num_layers in zip(axes, (32, 64)):
        num_sparse = num_layers - NUM_FULL_LAYERS - NUM_SELECT_LAYERS
        for place, context in enumerate(CONTEXTS):
            full = times[context, "full"]
            axis.bar(place - 0.2, num_layers * full, 0.36, color=theme["colors"][1],
                     label="full layers" if place == 0 else None)
            base = 0.0
            for color, name, value in [
                    (1, None, NUM_FULL_LAYERS * full),
                    (2, "selecting layers", NUM_SELECT_LAYERS * times[context, "select"]),
                    (0, "sparse layers", num_sparse * times[context, "sparse"])]:
                axis.bar(place + 0.2, value, 0.36, bottom=base, color=theme["colors"][color],
                         label=name if place == 0 else None)
                base += value
            axis.annotate(f"{num_layers * full / base:.1f}x", (place + 0.2, base), ha="center",
                          va="bottom", color=theme["text"])
        axis.set_xticks(range(len(CONTEXTS)), [f"{context:,}" for context in CONTEXTS])
        label(axis, theme, f"{num_layers} layers: full attention, TidalDecode", "context",
              "ms of attention a token")
    axes[0].legend(loc="upper left", frameon=False, labelcolor=theme["text"])
    return figure


def main():
    print_decode_table()
    print_attention_table()
    matplotlib.rcParams["svg.hashsalt"] = "tidal"
    for name, theme in THEMES.items():
        for picture, draw in (("latency", draw_latency), ("attention", draw_attention)):
            figure = draw(theme)
            figure.savefig(IMAGES / f"decode-{picture}-{name}.svg", metadata={"Date": None})
            pyplot.close(figure)


if __name__ == "__main__":
    main()
