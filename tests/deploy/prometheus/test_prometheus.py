"""deploy/prometheus: promtool's verdict, and that every alert can be looked up."""

import pathlib
import re
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy" / "prometheus"
TESTS = pathlib.Path(__file__).parent


def _promtool(*arguments):
    output = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    return output.returncode, output.stdout + output.stderr


def _alerts():
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def _cases_of_alerts():
    cases = [case for name in ("alerts_test.yml", "burn_rate_test.yml")
             for case in yaml.safe_load((TESTS / name).read_text(encoding="utf-8"))["tests"]]
    return [expected for case in cases for expected in case["alert_rule_test"]]


def _anchors(document):
    """The anchors that Markdown's headings have."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
            for heading in headings}


def test_configuration_and_rules_are_valid():
    status, output = _promtool("check", "config", str(FOLDER / "prometheus.yml"))
    assert status == 0, output
    status, output = _promtool("check", "rules", str(FOLDER / "recording_rules.yml"),
                               str(FOLDER / "alerts.yml"))
    assert status == 0, output


@pytest.mark.parametrize("name", ["recording_rules_test.yml", "alerts_test.yml",
                                  "burn_rate_test.yml"])
def test_rules_give_what_is_expected(name):
    status, output = _promtool("test", "rules", str(TESTS / name))
    assert status == 0, output


def test_every_alert_has_a_case_that_fires_and_one_that_does_not():
    firing = {case["alertname"] for case in _cases_of_alerts() if case["exp_alerts"]}
    silent = {case["alertname"] for case in _cases_of_alerts() if not case["exp_alerts"]}
    assert firing == silent == set(_alerts())


def test_every_alert_names_a_section_of_the_runbook():
    for name, rule in _alerts().items():
        path, anchor = rule["annotations"]["runbook"].split("#")
        assert anchor in _anchors(ROOT / path), name
        assert name in (ROOT / path).read_text(encoding="utf-8"), name
        assert rule["labels"]["severity"] in {"critical", "warning"}, name


def test_rules_become_an_object_of_the_operator():
    """The command of docs/operations.md, but for kubectl."""
    document = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    command = re.search(r"```sh\n(\{ printf .*?\n\}) \| kubectl", document, re.DOTALL).group(1)
    output = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True,
                            cwd=ROOT)
    rule = yaml.safe_load(output.stdout)
    assert rule["kind"] == "PrometheusRule"
    groups = [group for name in ("recording_rules.yml", "alerts.yml")
              for group in yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))["groups"]]
    assert rule["spec"]["groups"] == groups
