#!/usr/bin/env python3
"""Draws main panels of deploy/grafana's dashboard from a real server under load.

Starts tidal-server (embedded model, CPU) and Prometheus, sends three loads one after another, asks
Prometheus what the panels ask, and writes docs/images/dashboard-light.svg and -dark.svg. Takes
three minutes. Needs Debian's `prometheus`, and matplotlib beside tests/requirements.txt.

  build/venv/bin/python scripts/draw_dashboard.py [--bin_dir=build/release/bin] [--output=DIR]
"""

import argparse
import math
import pathlib
import sys
import tempfile
import time

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot, ticker  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts" / "lib"))

import monitored_server  # noqa: E402

# Titles of panels, and what their vertical axes show.
PANELS = {
    "Time to first token": "seconds", "Inter-token latency": "seconds",
    "Generated tokens by server": "tokens a second", "Requests running and waiting": "requests",
    "KV blocks": "blocks of 16 tokens", "Attended share by server": "of the context",
}
SERVER_FLAGS = ["--kv_cache_memory=256MiB", "--selection_layers=2,5", "--max_running_requests=8"]
PROMPTS = ["--prompt_tokens=uniform:500:1500", "--output_tokens=uniform:32:96",
           "--num_requests=100000"]
# What is sent, its name in the picture, and for how long in seconds.
LOADS = [
    (["--concurrency=2", "--attention=tidal", "--token_budget=64"], "2 clients, tidal", 50),
    (["--concurrency=12", "--attention=tidal", "--token_budget=64"], "12 clients, tidal", 50),
    (["--concurrency=2", "--attention=full"], "2 clients, full attention", 50),
]
RATE_INTERVAL = "15s"
THEMES = {
    "light": {"text": "#1f2328", "faint": "#59636e", "grid": "#d1d9e0", "background": "#ffffff",
              "lines": ["#0969da", "#bc4c00", "#1a7f37", "#8250df"]},
    "dark": {"text": "#f0f6fc", "faint": "#9198a1", "grid": "#3d444d", "background": "#0d1117",
             "lines": ["#4493f8", "#f0883e", "#3fb950", "#ab7df8"]},
}


def measure(bin_dir):
    """Runs the loads. Returns [(panel, [(legend, times, values)])], with times in seconds from the
    start, and [(start, name)] of the loads."""
    with tempfile.TemporaryDirectory() as folder:
        monitored = monitored_server.MonitoredServer(bin_dir, folder, *SERVER_FLAGS)
        try:
            start = time.time()
            phases = []
            for seed, (flags, name, duration_s) in enumerate(LOADS, start=1):
                phases.append((time.time() - start, name))
                print(f"{phases[-1][0]:.0f} s: {name}", flush=True)
                monitored.server.client("bench", *PROMPTS, *flags, f"--duration={duration_s}s",
                                        f"--load_seed={seed}")
            end = time.time()
            found = {panel["title"]: panel for panel in monitored_server.dashboard_panels()}
            return [(found[title], ask(monitored, found[title], start, end)) for title in PANELS], \
                phases
        finally:
            monitored.close()


def ask(monitored, panel, start, end):
    series = []
    for target in panel["targets"]:
        expression = monitored_server.with_variables(target["expr"], RATE_INTERVAL)
        for one in monitored.query_range(expression, start, end):
            legend = target["legendFormat"]
            for label, value in one["metric"].items():
                legend = legend.replace("{{" + label + "}}", value)
            points = [(at - start, float(text)) for at, text in one["values"]]
            points = [(at, value) for at, value in points if math.isfinite(value)]
            if points:
                series.append((legend, [at for at, _ in points], [value for _, value in points]))
    return series


def draw_panel(axes, panel, series, theme):
    by_server = "instance" in panel["targets"][0]["legendFormat"]
    defaults = panel["fieldConfig"]["defaults"]
    if defaults["custom"]["stacking"]["mode"] == "normal" and not by_server:
        stack = series[::-1]
        axes.stackplot(stack[0][1], [values for _, _, values in stack],
                       labels=[legend for legend, _, _ in stack], colors=theme["lines"],
                       alpha=0.75, linewidth=0)
    else:
        for (legend, times, values), color in zip(series, theme["lines"]):
            axes.plot(times, values, color=color, linewidth=1.5,
                      label=None if by_server else legend)
    if defaults["unit"] == "percentunit":
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
    axes.set_ylim(bottom=0)
    axes.set_title(panel["title"].removesuffix(" by server"), loc="left", fontsize=11,
                   color=theme["text"], fontweight="bold", pad=8)
    axes.set_ylabel(PANELS[panel["title"]], color=theme["faint"], fontsize=9)
    if not by_server:
        axes.legend(loc="upper left", fontsize=8.5, ncols=len(series), framealpha=1,
                    facecolor=theme["background"], edgecolor="none", labelcolor=theme["text"],
                    handlelength=1.2, columnspacing=1.2, borderaxespad=0.2)
        axes.set_ylim(top=axes.get_ylim()[1] * 1.15)  # room for the legend


def draw(panels, phases, end, theme, path):
    figure, grid = pyplot.subplots(2, 3, figsize=(12.4, 6.2), layout="constrained", sharex=True)
    figure.patch.set_facecolor(theme["background"])
    for axes, (panel, series) in zip(grid.flat, panels):
        axes.set_facecolor(theme["background"])
        draw_panel(axes, panel, series, theme)
        for start, _ in phases[1:]:
            axes.axvline(start, color=theme["faint"], linewidth=0.9, linestyle=(0, (4, 3)))
        axes.grid(axis="y", color=theme["grid"], linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(colors=theme["faint"], labelsize=9, length=0)
        axes.set_xlim(0, end)
        for spine in axes.spines.values():
            spine.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("seconds", color=theme["faint"], fontsize=9)
    names = ", then ".join(name for _, name in phases)
    figure.suptitle(f"Embedded model on a CPU, prompts of 500 to 1,500 tokens: {names}",
                    color=theme["text"], fontsize=11.5, x=0.01, ha="left")
    pyplot.rcParams["svg.hashsalt"] = "tidal"
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Draws main panels of the dashboard.")
    parser.add_argument("--bin_dir", default=str(ROOT / "build" / "release" / "bin"))
    parser.add_argument("--output", default=str(ROOT / "docs" / "images"))
    options = parser.parse_args()
    panels, phases = measure(options.bin_dir)
    end = max(times[-1] for _, series in panels for _, times, _ in series)
    folder = pathlib.Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    pyplot.rcParams["svg.fonttype"] = "none"
    pyplot.rcParams["font.family"] = "sans-serif"
    for name, theme in THEMES.items():
        draw(panels, phases, end, theme, folder / f"dashboard-{name}.svg")


if __name__ == "__main__":
    main()
