//! What is in `deploy/`, `Dockerfile` and `compose.yaml` speaks of a program that exists: its metrics, commands, variables.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use meet_projector::cli;
use meet_projector::config::variables::VARIABLES;
use meet_projector::telemetry::Metrics;
use meet_projector::telemetry::metrics::{HttpLabels, PoolLabels, RouteLabel, StatusLabel};
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    serde_norway::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The runbooks, by path.
fn runbooks() -> BTreeMap<String, String> {
    let folder = std::fs::read_dir(root().join("deploy/runbooks")).unwrap();
    let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.map(|name| format!("deploy/runbooks/{name}")).map(|path| (path.clone(), read(&path))).collect()
}

/// Every name that Prometheus keeps of an exposition of ours, with its kind and help.
fn metrics() -> BTreeMap<String, (String, String)> {
    let metrics = Metrics::new();
    // What cannot be foreseen, once.
    let (route, status) = ("/livez", 200);
    drop(metrics.http_requests.get_or_create(&HttpLabels { route, status }));
    drop(metrics.http_request_seconds.get_or_create(&RouteLabel { route }));
    drop(metrics.sessions.get_or_create(&StatusLabel { status: "READY" }));
    drop(metrics.db_connections.get_or_create(&PoolLabels { pool: "read", state: "idle" }));
    let text = metrics.encode();
    let of = |word: &str| -> BTreeMap<String, String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(word)?.split_once(' '));
        lines.map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect()
    };
    let help = of("# HELP ");
    let named = of("# TYPE ").into_iter().map(|(name, kind)| {
        let help = help[&name].trim_end_matches('.').to_owned();
        match kind.as_str() {
            "counter" => (format!("{name}_total"), (kind, help)),
            "info" => (format!("{name}_info"), (kind, help)),
            _ => (name, (kind, help)),
        }
    });
    named.collect()
}

/// Words of `text` that begin with our prefix.
fn metric_names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("meet_projector_")).collect()
}

#[test]
fn every_metric_that_is_named_somewhere_exists() {
    let known = metrics();
    let exists = |name: &str| {
        let plain = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| name.strip_suffix(suffix));
        known.contains_key(name)
            || plain.is_some_and(|plain| known.get(plain).is_some_and(|(kind, _)| kind == "histogram"))
    };
    let files = [
        "deploy/grafana/meet-projector.json",
        "deploy/prometheus/meet-projector.rules.yaml",
        "README.md",
        "deploy/README.md",
    ];
    let files = files.map(|path| (path.to_owned(), read(path)));
    for (path, text) in files.into_iter().chain(runbooks()) {
        for name in metric_names(&text) {
            assert!(exists(name), "{path} names {name}, which there is not");
        }
    }
    // And the other way round: what is measured is shown.
    let dashboard = read("deploy/grafana/meet-projector.json");
    let shown = metric_names(&dashboard);
    for name in known.keys().filter(|name| name.starts_with("meet_projector_")) {
        let is_shown = shown
            .iter()
            .any(|shown| shown.strip_prefix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest == "_bucket"));
        assert!(is_shown, "the dashboard does not show {name}");
    }
}

#[test]
fn the_readme_lists_every_metric() {
    let rows: Vec<String> =
        metrics().into_iter().map(|(name, (kind, help))| format!("| `{name}` | {kind} | {help} |")).collect();
    let readme = read("README.md");
    let missing: Vec<_> = rows.iter().filter(|row| !readme.lines().any(|line| line == *row)).collect();
    assert!(missing.is_empty(), "the table in README.md should be\n{}", rows.join("\n"));
    let listed = readme.lines().filter(|line| line.starts_with("| `meet_projector_")).count();
    assert_eq!(listed, rows.len() - 1, "the table in README.md has rows of metrics that are gone");
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/meet-projector.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_i64().unwrap()), "an id twice: {panel:#}");
        let at = |name: &str| panel["gridPos"][name].as_i64().unwrap();
        for x in at("x")..at("x") + at("w") {
            assert!(x < 24, "wider than the screen: {}", panel["title"]);
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "panels overlap at {}", panel["title"]);
            }
        }
        if panel["type"] != "row" {
            assert!(panel["description"].as_str().is_some_and(|text| text.len() > 5), "{panel:#}");
            assert!(panel["targets"].as_array().is_some_and(|targets| !targets.is_empty()), "{panel:#}");
        }
    }
}

fn alerts() -> Vec<Value> {
    let rules = yaml("deploy/prometheus/meet-projector.rules.yaml");
    let groups = rules["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

#[test]
fn every_alert_has_a_runbook_that_knows_it_and_a_test() {
    let runbooks = runbooks();
    let tests = read("deploy/prometheus/meet-projector.rules.test.yaml");
    let mut known = BTreeMap::new();
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap().to_owned();
        let severity = alert["labels"]["severity"].as_str().unwrap();
        assert!(["page", "ticket"].contains(&severity), "{name}: {severity}");
        assert!(alert["annotations"]["summary"].is_string(), "{name} says nothing");
        let runbook = alert["annotations"]["runbook"].as_str().unwrap().to_owned();
        let text = runbooks.get(&runbook).unwrap_or_else(|| panic!("{name} names {runbook}, which there is not"));
        assert!(text.contains(&format!("`{name}`")), "{runbook} does not know {name}");
        let tested = tests.split("alertname: ").skip(1).any(|rest| {
            let (of, rest) = rest.split_once('\n').unwrap();
            of == name && rest.split("alertname").next().unwrap().contains("exp_labels")
        });
        assert!(tested, "no test makes {name} fire");
        known.insert(name, runbook);
    }
    for (path, text) in &runbooks {
        for word in text.split('`').filter(|word| word.starts_with("Meet") && word.chars().all(char::is_alphabetic)) {
            assert_eq!(known.get(word), Some(path), "{path} speaks of {word}");
        }
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            assert!(runbooks.contains_key(&format!("deploy/runbooks/{link}")), "{path}: {link} is not there");
        }
        assert!(
            path.ends_with("README.md")
                || read("deploy/runbooks/README.md").contains(&format!("({})", path.rsplit('/').next().unwrap())),
            "{path} is not in the list"
        );
    }
}

#[test]
fn the_alerts_fire_when_they_should() {
    let script = root().join(".ci/promtool");
    let found = Command::new(&script).stderr(std::process::Stdio::inherit()).output().unwrap();
    assert!(found.status.success(), "{} found no promtool; what it says is above", script.display());
    let promtool = PathBuf::from(String::from_utf8(found.stdout).unwrap().trim());
    for arguments in [
        ["check", "rules", "deploy/prometheus/meet-projector.rules.yaml"],
        ["test", "rules", "deploy/prometheus/meet-projector.rules.test.yaml"],
    ] {
        let run = Command::new(&promtool).args(arguments).current_dir(root()).output().unwrap();
        let said = [run.stdout, run.stderr].concat();
        assert!(run.status.success(), "promtool {arguments:?}:\n{}", String::from_utf8_lossy(&said));
    }
}

/// The command lines of ours in a text: in blocks of code, and between backticks.
fn command_lines(text: &str) -> Vec<Vec<String>> {
    let mut lines = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        if line.starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            lines.push(line.split(" #").next().unwrap().to_owned());
        } else {
            lines.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    lines.iter().filter_map(|line| command_line(line)).collect()
}

/// Words from `meet-projector` on, up to the end of the command; `None` where there is no such word, or nothing behind it.
fn command_line(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let (mut word, mut quoted) = (String::new(), false);
    for c in line.chars().chain([' ']) {
        match c {
            '"' | '\'' => quoted = !quoted,
            ' ' if !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    let start = words.iter().position(|word| word == "meet-projector" || word == "/usr/bin/meet-projector")?;
    let command: Vec<_> = words[start..]
        .iter()
        .take_while(|word| !["|", "&&", ";", ">", "<"].contains(&word.as_str()))
        .cloned()
        .collect();
    // `journalctl --unit meet-projector --since …` speaks of the unit.
    command.get(1).is_some_and(|first| !first.starts_with('-')).then_some(command)
}

fn parse(words: &[String]) -> Result<(), String> {
    cli::command().try_get_matches_from(words).map(drop).map_err(|error| error.to_string())
}

#[test]
fn every_command_in_a_runbook_is_one() {
    let mut count = 0;
    let documents = ["README.md", "deploy/README.md"].map(|path| (path.to_owned(), read(path)));
    for (path, text) in runbooks().into_iter().chain(documents) {
        for words in command_lines(&text) {
            // Placeholders of the README.
            if words.iter().any(|word| word.contains('…') || word == "ID" || word == "FILE") {
                continue;
            }
            count += 1;
            parse(&words).unwrap_or_else(|error| panic!("{path}: `{}` is no command:\n{error}", words.join(" ")));
        }
    }
    assert!(count > 50, "only {count} commands were found: the search is wrong");
    let made_up = ["meet-projector", "session", "shwo", "s1"].map(str::to_owned);
    assert!(parse(&made_up).is_err());
}

/// Names in capitals that look like variables of ours, in what starts the program.
fn variables_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let families = ["GOOGLE_", "NATS_", "MEET_", "OTEL_", "JWT_", "OAUTH_", "API_", "OPS_"];
    let single = ["HTTP_ADDR", "ADMIN_ADDR", "DATABASE_URL", "LOG_FORMAT", "RUST_LOG", "WP_BASE_URL"];
    words
        .filter(|word| families.iter().any(|family| word.starts_with(family)) || single.contains(word))
        .filter(|word| word.len() > 5 && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
        .map(|word| word.strip_suffix("_FILE").filter(|base| is_variable(base)).unwrap_or(word).to_owned())
        .collect()
}

fn is_variable(name: &str) -> bool {
    VARIABLES.iter().any(|variable| variable.name == name)
}

#[test]
fn every_variable_that_is_set_somewhere_is_one() {
    let files = [
        "Dockerfile",
        "compose.yaml",
        "deploy/systemd/meet-projector.service",
        "deploy/kubernetes/base/deployment.yaml",
        "deploy/kubernetes/base/kustomization.yaml",
        "deploy/kubernetes/overlays/staging/kustomization.yaml",
        "deploy/kubernetes/overlays/production/kustomization.yaml",
        "deploy/README.md",
        "README.md",
    ];
    let mut count = 0;
    for (path, text) in files.map(|path| (path.to_owned(), read(path))).into_iter().chain(runbooks()) {
        for name in variables_in(&text) {
            // Codes of errors, what the tests look for, and a constant of the WordPress example.
            let is_other = [
                "MEET_NOT_ALLOWED",
                "MEET_PROJECTOR_TOKEN",
                "NATS_SERVER",
                "GOOGLE_UNAVAILABLE",
                "GOOGLE_BUSY",
                "GOOGLE_TIMEOUT",
            ]
            .contains(&name.as_str());
            assert!(is_variable(&name) || is_other, "{path} names {name}, which there is not");
            count += 1;
        }
    }
    assert!(count > 40, "only {count} were found: the search is wrong");
}

#[test]
fn what_starts_the_program_starts_what_there_is() {
    let unit = read("deploy/systemd/meet-projector.service");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/")).unwrap();
    parse(&start.split(' ').map(str::to_owned).collect::<Vec<_>>()).unwrap();
    let compose = yaml("compose.yaml");
    let base = |words: &Value| -> Vec<String> {
        let words = words.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned());
        ["meet-projector".to_owned()].into_iter().chain(words).collect()
    };
    for service in ["streams", "migrate", "projector"] {
        parse(&base(&compose["services"][service]["command"])).unwrap();
    }
    let deployment = yaml("deploy/kubernetes/base/deployment.yaml");
    let pod = &deployment["spec"]["template"]["spec"];
    parse(&base(&pod["initContainers"][0]["args"])).unwrap();
    parse(&base(&pod["containers"][0]["args"])).unwrap();
    let dockerfile = read("Dockerfile");
    for line in dockerfile.lines().filter(|line| line.contains("CMD [")) {
        let list: Value = serde_json::from_str(&line[line.find('[').unwrap()..]).unwrap();
        let words: Vec<_> = list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        let words = words.iter().filter(|word| **word != "/usr/bin/meet-projector").map(|word| (*word).to_owned());
        parse(&["meet-projector".to_owned()].into_iter().chain(words).collect::<Vec<_>>()).unwrap();
    }
    assert!(!dockerfile.contains("--features"), "an image has no fake Google");
}
