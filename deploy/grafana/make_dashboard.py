#!/usr/bin/env python3
"""Writes dashboards/tidal.json, the dashboard of tidal-server, from the panels below.

  deploy/grafana/make_dashboard.py [--check]

--check: writes nothing, and fails where the file is not what would be written.
"""

import argparse
import json
import pathlib
import sys

OUTPUT = pathlib.Path(__file__).parent / "dashboards" / "tidal.json"
NUM_COLUMNS = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
SERVERS = 'instance=~"$instance"'
RANGE = "[$__rate_interval]"
QUANTILES = ("0.5", "0.9", "0.99")


# --- queries: (PromQL, legend) -------------------------------------------------------------------


def selector(labels=""):
    return "{" + ", ".join(part for part in (SERVERS, labels) if part) + "}"


def rate(metric, labels=""):
    return f"rate({metric}{selector(labels)}{RANGE})"


def rate_by(label, metric, legend=None, labels=""):
    return (f"sum by ({label}) ({rate(metric, labels)})", legend or "{{" + label + "}}")


def percentiles(metric, labels=""):
    """Of all servers that are selected, together."""
    return [(f"histogram_quantile({q}, sum by (le) ({rate(metric + '_bucket', labels)}))",
             f"p{float(q) * 100:g}") for q in QUANTILES]


def percentile_by(label, quantile, metric):
    buckets = f"sum by ({label}, le) ({rate(metric + '_bucket')})"
    return (f"histogram_quantile({quantile}, {buckets})", "{{" + label + "}}")


def gauge_by(label, metric, labels="", how="sum"):
    return (f"{how} by ({label}) ({metric}{selector(labels)})", "{{" + label + "}}")


# --- panels --------------------------------------------------------------------------------------


def panel(kind, title, description, queries, unit, width, height):
    targets = [{"refId": chr(ord("A") + i), "datasource": DATASOURCE, "expr": expression,
                "legendFormat": legend} for i, (expression, legend) in enumerate(queries)]
    return {"type": kind, "title": title, "description": description, "datasource": DATASOURCE,
            "targets": targets, "gridPos": {"w": width, "h": height},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []}}


def stat(title, description, expression, unit, steps):
    """One number. steps: colours from the values on, the first one from the beginning."""
    made = panel("stat", title, description, [(expression, "")], unit, 4, 4)
    thresholds = [{"color": color, "value": value} for color, value in steps]
    made["fieldConfig"]["defaults"].update(
        color={"mode": "thresholds"}, thresholds={"mode": "absolute", "steps": thresholds})
    made["options"] = {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area"}
    return made


def graph(title, description, queries, unit, stacked=False, width=8):
    made = panel("timeseries", title, description, queries, unit, width, 8)
    made["fieldConfig"]["defaults"]["custom"] = {
        "lineWidth": 1, "fillOpacity": 30 if stacked else 8, "showPoints": "never",
        "stacking": {"mode": "normal" if stacked else "none"}}
    made["options"] = {"legend": {"displayMode": "list", "placement": "bottom"},
                       "tooltip": {"mode": "multi", "sort": "desc"}}
    return made


def heatmap(title, description, metric, unit):
    queries = [(f"sum by (le) ({rate(metric + '_bucket')})", "{{le}}")]
    made = panel("heatmap", title, description, queries, unit, 8, 8)
    made["targets"][0]["format"] = "heatmap"
    made["options"] = {"calculate": False, "yAxis": {"unit": unit},
                       "color": {"mode": "scheme", "scheme": "Oranges"}}
    return made


def table(title, description, expression, columns):
    """One line a series, with its labels. columns: label -> heading."""
    made = panel("table", title, description, [(expression, "")], "none", NUM_COLUMNS, 6)
    made["targets"][0].update(format="table", instant=True)
    made["transformations"] = [
        {"id": "filterFieldsByName", "options": {"include": {"names": list(columns)}}},
        {"id": "organize", "options": {
            "indexByName": {label: i for i, label in enumerate(columns)},
            "renameByName": columns}}]
    return made


def overview():
    plain = [("green", None)]
    ready = selector('state="ready"')
    generations = 'method=~"tidal.inference.v1.InferenceService/Generate.*"'
    return [
        stat("Servers ready", "Servers that take requests.",
             f"sum(tidal_server_state{ready})", "none", [("red", None), ("green", 1)]),
        stat("Generations", "Ended calls a second.",
             f"sum({rate('tidal_requests_total', generations)})", "reqps", plain),
        stat("Generated tokens", "Tokens a second, of all servers.",
             f"sum({rate('tidal_generation_tokens_total')})", "none", plain),
        stat("TTFT p99", "From a request's arrival to its first token; red from the objective on.",
             percentiles("tidal_time_to_first_token_seconds")[-1][0], "s",
             [("green", None), ("yellow", 5), ("red", 10)]),
        stat("ITL p99", "Between a request's tokens; red from the objective on.",
             percentiles("tidal_inter_token_latency_seconds")[-1][0], "s",
             [("green", None), ("yellow", 0.05), ("red", 0.1)]),
        stat("KV cache in use", "The fullest server's.",
             f"max(tidal_kv_cache_usage_ratio{selector()})", "percentunit",
             [("green", None), ("yellow", 0.8), ("red", 0.95)]),
        table("Servers", "What each server runs with.", f"tidal_config_info{selector()}",
              {"instance": "server", "model_name": "model", "device": "device",
               "attention": "attention", "token_budget": "token budget",
               "max_model_len": "longest request", "max_batch_tokens": "batch tokens",
               "max_running_requests": "running at most", "num_kv_blocks": "KV blocks"}),
    ]


def latency():
    return [
        graph("Time to first token", "From arrival, before tokenising.",
              percentiles("tidal_time_to_first_token_seconds"), "s"),
        graph("Inter-token latency", "Between successive tokens; preemptions show here.",
              percentiles("tidal_inter_token_latency_seconds"), "s"),
        graph("End to end", "From arrival to the request's end.",
              percentiles("tidal_e2e_request_latency_seconds"), "s"),
        graph("In the queue", "From arrival to leaving the queue.",
              percentiles("tidal_request_queue_time_seconds"), "s"),
        graph("Prefill", "From leaving the queue to the first token.",
              percentiles("tidal_request_prefill_time_seconds"), "s"),
        graph("Decode", "From the first token to the end.",
              percentiles("tidal_request_decode_time_seconds"), "s"),
        graph("Time to first token, p99 by server", "One server above the others has a problem.",
              [percentile_by("instance", "0.99", "tidal_time_to_first_token_seconds")], "s"),
        graph("Time to first token, p99 by model", "Over 5 minutes, from the recording rules.",
              [('model:tidal_time_to_first_token_seconds:quantile_rate5m'
                '{model_name=~"$model", quantile="0.99"}', "{{model_name}}")], "s"),
        heatmap("Inter-token latency, distribution", "Tokens a second in each bucket.",
                "tidal_inter_token_latency_seconds", "s"),
    ]


def throughput():
    return [
        graph("Generated tokens by server", "A second.",
              [rate_by("instance", "tidal_generation_tokens_total")], "none", stacked=True),
        graph("Prompt tokens by source",
              "A second: computed, cached (found in the prefix cache), or computed once more.",
              [rate_by("source", "tidal_prompt_tokens_total")], "none", stacked=True),
        graph("Goodput",
              "Tokens a second that came in time, beside all, and requests whose first token did.",
              [('sum(model:tidal_goodput_tokens:rate5m{model_name=~"$model"})', "tokens in time"),
               ('sum(model:tidal_generation_tokens:rate5m{model_name=~"$model"})', "tokens"),
               ('sum(model:tidal_goodput_requests:rate5m{model_name=~"$model"})',
                "requests in time")], "none"),
        graph("Requests ended, by reason", "A second.",
              [rate_by("reason", "tidal_requests_finished_total")], "reqps", stacked=True),
        graph("Prompt length", "Tokens.", percentiles("tidal_request_prompt_tokens"), "none"),
        graph("Output length", "Tokens.", percentiles("tidal_request_generation_tokens"), "none"),
    ]


def scheduling():
    return [
        graph("Requests running and waiting", "Now.",
              [(f"sum(tidal_requests_running{selector()})", "running"),
               (f"sum(tidal_requests_waiting{selector()})", "waiting")], "none"),
        graph("Waiting requests by server", "Now. Unequal: the balancer's doing.",
              [gauge_by("instance", "tidal_requests_waiting")], "none"),
        graph("Waiting prompt tokens by server", "Now: the work in the queue.",
              [gauge_by("instance", "tidal_waiting_prompt_tokens")], "none"),
        graph("KV cache in use by server", "Held by requests; 1 is all of it.",
              [gauge_by("instance", "tidal_kv_cache_usage_ratio", how="max")], "percentunit"),
        graph("KV blocks", "Of 16 tokens each. Cached ones are given away when they are needed.",
              [gauge_by("state", "tidal_kv_blocks")], "none", stacked=True),
        graph("Preemptions by server", "Requests a second that lost their KV to others.",
              [rate_by("instance", "tidal_preemptions_total")], "none"),
        graph("Prefix cache hits", "The share of prompt tokens that need not be computed.",
              [(f"sum({rate('tidal_prefix_cache_hit_tokens_total')})"
                f" / sum({rate('tidal_prefix_cache_queried_tokens_total')})", "hits")],
              "percentunit"),
        graph("Sequences in a step", "The mean.",
              [(f"sum by (instance) ({rate('tidal_batch_size_sum')})"
                f" / sum by (instance) ({rate('tidal_batch_size_count')})", "{{instance}}")],
              "none"),
        graph("Step duration, p99", "By kind: a mixed step is the pause that a prefill causes.",
              [percentile_by("kind", "0.99", "tidal_step_duration_seconds")], "s"),
        graph("Steps by kind", "A second.", [rate_by("kind", "tidal_engine_steps_total")], "none",
              stacked=True),
        graph("Memory", "Held by the backends.", [gauge_by("kind", "tidal_memory_bytes")], "bytes",
              stacked=True),
        graph("Time since the last progress", "Of the engine; seconds here are a stall.",
              [(f"max by (instance) (time() - "
                f"tidal_engine_last_progress_timestamp_seconds{selector()})", "{{instance}}")],
              "s"),
    ]


def sparse_attention():
    attended = rate("tidal_attention_tokens_total", 'kind="attended"')
    available = rate("tidal_attention_tokens_total", 'kind="available"')
    return [
        graph("Attended share by server", "Of the context, in decode steps; 1 is full attention.",
              [(f"sum by (instance) ({attended}) / sum by (instance) ({available})",
                "{{instance}}")], "percentunit"),
        graph("Positions in decode steps", "A second, over layers: attended, and those there were.",
              [(f"sum({attended})", "attended"), (f"sum({available})", "available")], "none"),
        graph("Selections", "A second: how often positions are chosen anew.",
              [rate_by("instance", "tidal_selections_total")], "none"),
    ]


def errors():
    return [
        graph("Calls by code", "A second, without OK.",
              [rate_by("code", "tidal_requests_total", labels='code!="OK"')], "reqps"),
        graph("Calls by method", "A second.", [rate_by("method", "tidal_requests_total")], "reqps"),
        graph("Refusals by reason", "A second, before the engine took the request.",
              [rate_by("reason", "tidal_admission_rejections_total")], "reqps"),
        graph("Cancellations by stage", "A second: by the client, its deadline, or slow reading.",
              [rate_by("stage", "tidal_cancellations_total")], "reqps"),
        graph("Faults of the engine", "In 5 minutes.",
              [(f"sum by (instance, kind) (increase(tidal_engine_errors_total{selector()}[5m]))",
                "{{instance}} {{kind}}")], "none"),
        graph("Servers by state", "Now.", [gauge_by("state", "tidal_server_state")], "none",
              stacked=True),
        graph("First and other tokens that came late",
              "The share, over an hour; the objective allows 1 %.",
              [('model:tidal_first_tokens_late:ratio_rate1h{model_name=~"$model"}',
                "{{model_name}}, first"),
               ('model:tidal_next_tokens_late:ratio_rate1h{model_name=~"$model"}',
                "{{model_name}}, others")], "percentunit"),
    ]


# --- the whole -----------------------------------------------------------------------------------


def place(rows):
    """Panels from left to right and from top to bottom, each row under its title."""
    placed = []
    y = 0
    for title, panels in rows:
        placed.append({"type": "row", "title": title, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": NUM_COLUMNS, "h": 1}})
        x, y, line_height = 0, y + 1, 0
        for one in panels:
            if x + one["gridPos"]["w"] > NUM_COLUMNS:
                x, y, line_height = 0, y + line_height, 0
            one["gridPos"].update(x=x, y=y)
            placed.append(one)
            x += one["gridPos"]["w"]
            line_height = max(line_height, one["gridPos"]["h"])
        y += line_height
    for number, one in enumerate(placed, start=1):
        one["id"] = number
    return placed


def variable(name, label, query):
    return {"name": name, "label": label, "type": "query", "datasource": DATASOURCE,
            "query": {"query": query, "refId": name}, "definition": query, "refresh": 2,
            "sort": 1, "multi": True, "includeAll": True,
            "current": {"text": "All", "value": "$__all"}}


def dashboard():
    rows = [("Overview", overview()), ("Latency", latency()), ("Throughput", throughput()),
            ("Scheduling and KV cache", scheduling()), ("Sparse attention", sparse_attention()),
            ("Errors", errors())]
    return {
        "title": "Tidal", "uid": "tidal", "tags": ["tidal", "inference"], "schemaVersion": 39,
        "editable": True, "refresh": "15s", "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser", "annotations": {"list": []},
        "templating": {"list": [
            {"name": "datasource", "label": "Prometheus", "type": "datasource",
             "query": "prometheus"},
            variable("model", "model", "label_values(tidal_config_info, model_name)"),
            variable("instance", "server",
                     'label_values(tidal_config_info{model_name=~"$model"}, instance)'),
        ]},
        "panels": place(rows),
    }


def main():
    parser = argparse.ArgumentParser(description="Writes the Grafana dashboard.")
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    text = json.dumps(dashboard(), indent=1) + "\n"
    if not check:
        OUTPUT.parent.mkdir(exist_ok=True)
        OUTPUT.write_text(text, encoding="utf-8")
    elif not OUTPUT.exists() or OUTPUT.read_text(encoding="utf-8") != text:
        sys.exit(f"{OUTPUT} is out of date: run {pathlib.Path(__file__).name}")


if __name__ == "__main__":
    main()
