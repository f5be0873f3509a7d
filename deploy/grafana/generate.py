#!/usr/bin/env python3
"""Writes meet-projector.json: the dashboard is long, regular and hard to review by hand, and this is none of that.

    deploy/grafana/generate.py           writes it
    deploy/grafana/generate.py --check   fails when it is not what this program writes
"""

import json
import pathlib
import sys

P = "meet_projector_"
SOURCE = {"type": "prometheus", "uid": "${source}"}
FILE = pathlib.Path(__file__).with_name("meet-projector.json")


def target(expr, legend="", exemplar=False):
    return {"datasource": SOURCE, "expr": expr, "legendFormat": legend or "__auto", "exemplar": exemplar, "range": True}


def thresholds(*steps):
    """Green below the first value; steps are (value, colour)."""
    return {"mode": "absolute", "steps": [{"color": "green", "value": None}] + [{"color": c, "value": v} for v, c in steps]}


def stat(title, expr, description, unit="none", steps=(), width=4):
    return {
        "type": "stat", "title": title, "description": description, "w": width, "h": 4,
        "targets": [{**target(expr), "instant": True, "range": False}],
        "fieldConfig": {"defaults": {"unit": unit, "thresholds": thresholds(*steps)}, "overrides": []},
        "options": {"colorMode": "background" if steps else "value", "reduceOptions": {"calcs": ["lastNotNull"]}},
    }


def graph(title, targets, description, unit="none", width=8, stack=False, least=0):
    custom = {"fillOpacity": 10, "showPoints": "never", "stacking": {"mode": "normal" if stack else "none"}}
    return {
        "type": "timeseries", "title": title, "description": description, "w": width, "h": 8, "targets": targets,
        "fieldConfig": {"defaults": {"unit": unit, "min": least, "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
    }


def rate(metric, by, unit_window="$__rate_interval", where=""):
    return f"sum by ({by}) (rate({P}{metric}{where}[{unit_window}]))"


def quantiles(metric, by="", where=""):
    group = f"le, {by}" if by else "le"
    legend = f" {{{{{by}}}}}" if by else ""
    return [
        target(f"histogram_quantile({q}, sum by ({group}) (rate({P}{metric}_bucket{where}[$__rate_interval])))",
               f"p{int(q * 100)}{legend}", exemplar=True)
        for q in (0.5, 0.95, 0.99)
    ]


RED = "red"
ROWS = [
    ("Is it well?", [
        stat("Start within 30 min, no link", f'max({P}sessions_at_risk{{window="30m"}})',
             "Somebody will stand before a closed door. Runbook: links late.", steps=[(1, RED)]),
        stat("… within 2 h", f'max({P}sessions_at_risk{{window="2h"}})', "The same, with time left.", steps=[(1, "orange")]),
        stat("Oldest pending", f"max({P}oldest_pending_seconds)", "How long the oldest pending session has been pending.", "s",
             [(60, "orange"), (300, RED)]),
        stat("Lag", f"max({P}lag_seconds)", "Age of the oldest event that waits on the stream.", "s", [(30, "orange"), (300, RED)]),
        stat("Teachers to reconnect",
             f'max(sum by (instance) ({P}teacher_connections{{state=~"RECONNECT_REQUIRED|SCOPE_MISSING|ADMIN_BLOCKED"}}))',
             "Their sessions wait for them.", steps=[(1, "orange")]),
        stat("Dead letters", f"max({P}dead_letters)", "Events that could not be read.", steps=[(1, "orange")]),
        stat("NATS", f"max({P}nats_connected)", "1 while connected.", steps=[(0, RED), (1, "green")]),
        stat("Database", f"min({P}database_up)", "1 while it answers.", steps=[(0, RED), (1, "green")]),
        stat("Breaker", f"max({P}google_breaker_open)", "1 while Google refuses this installation.", steps=[(1, RED)]),
        stat("Epoch question", f"max({P}ingest_blocked)", "1 while a person has to decide about the stream.", steps=[(1, RED)]),
        stat("Paused", f"max({P}paused)", "1 while an operator paused something.", steps=[(1, "orange")]),
        stat("Oldest result", f"max({P}outbox_oldest_seconds)", "Age of the oldest result not yet published.", "s",
             [(30, "orange"), (300, RED)]),
    ]),
    ("From event to link", [
        graph("Event to link", quantiles("event_to_link_duration_seconds"),
              "From the publishing of an event to its link being ready; a dot is a trace.", "s", 12),
        graph("Sessions", [target(f"max by (status) ({P}sessions)", "{{status}}")], "By meetStatus.", width=6, stack=True),
        graph("At risk", [target(f"max by (window) ({P}sessions_at_risk)", "{{window}}")],
              "Sessions without a link that start within the window.", width=6),
    ]),
    ("Ingest", [
        graph("Events", [target(rate("events_total", "outcome"), "{{outcome}}")], "Read from the stream, by outcome.", "ops"),
        graph("Shapes", [target(rate("events_total", "shape"), "{{shape}}")], "How events are wrapped.", "ops"),
        graph("Lag and redeliveries", [
            target(f"max({P}lag_messages)", "messages that wait"),
            target(f"sum(increase({P}redeliveries_total[5m]))", "redelivered in 5 min"),
        ], "What waits, and what came again."),
        graph("Runs: events to do", [target(f"max by (run) ({P}run_remaining_events)", "{{run}}")],
              "What replays, rebuilds and verifications have before them."),
        graph("Runs: silence", [target(f"max by (run) ({P}run_silence_seconds)", "{{run}}")],
              "How long a run that is not at its end has not moved.", "s"),
        graph("Clock ahead of Google's", [target(f"{P}clock_ahead_seconds", "{{instance}}")],
              "Below zero: behind. Runbook: wrong clock.", "s", least=None),
    ]),
    ("Google", [
        graph("Requests", [target(rate("google_requests_total", "operation, outcome"), "{{operation}} {{outcome}}")],
              "By operation and outcome.", "reqps"),
        graph("How long Google takes", quantiles("google_request_duration_seconds", "operation", '{outcome="ok"}')[:2],
              "Successes only; a dot is a trace.", "s"),
        graph("Refused", [target(rate("google_requests_total", "outcome", where='{outcome!="ok"}'), "{{outcome}}")],
              "404, 409, 410 and 412 are answers that the plan expects.", "reqps"),
        graph("Jobs", [target(rate("jobs_total", "outcome"), "{{outcome}}")], "Rounds for one session each.", "ops"),
        graph("Retries", [target(rate("retries_total", "reason"), "{{reason}}")], "Calls that will be made again.", "ops"),
        graph("Due", [target(f"max({P}due)", "due"), target(f"max({P}calendars_cooling_down)", "calendars cooling down")],
              "Work that waits at Google."),
        graph("Tokens", [target(rate("token_refreshes_total", "outcome"), "{{outcome}}")], "Access tokens asked for.", "ops"),
        graph("Teachers", [target(f"max by (state) ({P}teacher_connections)", "{{state}}")], "By the state of their grant.",
              stack=True),
        graph("Drift and cool-downs", [
            target(f"sum by (kind) (increase({P}drift_total[1h]))", "{{kind}} in an hour"),
            target(f"sum(increase({P}cool_downs_total[1h]))", "cool-downs in an hour"),
        ], "What others did to our events, and calendars that Google limited."),
    ]),
    ("Results and readers", [
        graph("Outbox", [target(f"max({P}outbox_messages)", "results that wait")], "Not yet published to stream MEET."),
        graph("Requests", [target(rate("http_requests_total", "route, status"), "{{route}} {{status}}")], "Answered by the API.",
              "reqps"),
        graph("How long answers take", quantiles("http_request_duration_seconds")[1:], "Long-polls left out.", "s"),
        graph("Long-polls", [target(f"sum({P}http_waits)", "under way")], "Readers who wait for a change."),
        graph("Database connections", [target(f"sum by (pool, state) ({P}db_connections)", "{{pool}} {{state}}")],
              "By pool and state.", stack=True),
        graph("Running since", [
            target('time() - process_start_time_seconds{job="meet-projector"}', "{{instance}}"),
        ], "A fall is a start.", "s"),
    ]),
]


def dashboard():
    panels, y = [], 0
    for title, row in ROWS:
        panels.append({"type": "row", "title": title, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        y, x, height = y + 1, 0, 0
        for panel in row:
            panel = dict(panel)
            w, h = panel.pop("w"), panel.pop("h")
            if x + w > 24:
                x, y, height = 0, y + height, 0
            panel["gridPos"] = {"x": x, "y": y, "w": w, "h": h}
            panel["datasource"] = SOURCE
            panels.append(panel)
            x, height = x + w, max(height, h)
        y += height
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "uid": "meet-projector", "title": "meet-projector", "tags": ["meet-projector"], "schemaVersion": 39, "version": 1,
        "timezone": "", "refresh": "30s", "time": {"from": "now-3h", "to": "now"}, "editable": True, "panels": panels,
        "annotations": {"list": [{
            "name": "Starts", "enable": True, "iconColor": "blue", "datasource": SOURCE,
            "expr": f"changes(process_start_time_seconds{{job=\"meet-projector\"}}[1m]) > 0", "titleFormat": "started",
        }, {
            "name": "Versions", "enable": True, "iconColor": "purple", "datasource": SOURCE,
            "expr": f"count by (version) ({P}build_info) unless count by (version) ({P}build_info offset 1m)",
            "titleFormat": "{{version}}",
        }]},
        "templating": {"list": [{
            "name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus",
        }]},
    }


text = json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"
if sys.argv[1:] == ["--check"]:
    if FILE.read_text() != text:
        sys.exit(f"{FILE.name} is not what {pathlib.Path(__file__).name} writes; run it")
elif sys.argv[1:]:
    sys.exit(__doc__)
else:
    FILE.write_text(text)
