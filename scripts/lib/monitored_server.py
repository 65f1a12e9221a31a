"""A tidal-server on the embedded model, and a Prometheus with the rules of deploy/prometheus.

For tests and for drawing: both programs listen on free ports of the loopback address, scrape and
evaluate every second, and keep their files in a folder that the caller gives.
"""

import contextlib
import json
import pathlib
import re
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request

import yaml
from local_server import ROOT, LocalServer, wait_until


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class MonitoredServer:
    """Both processes; close() ends them. `server` is the LocalServer."""

    def __init__(self, bin_dir, folder, *flags):
        self._folder = pathlib.Path(folder)
        self._prometheus = None
        self.server = LocalServer(bin_dir, folder, *flags)
        try:
            self._start_prometheus()
        except BaseException:
            self.close()
            raise

    def query(self, expression):
        """An instant query's series: [{"metric": labels, "value": [time, text]}, ...]."""
        return self._get("query", query=expression)

    def query_range(self, expression, start, end, step_s=1):
        """[{"metric": labels, "values": [[time, text], ...]}, ...] from start to end, in seconds
        since 1970."""
        return self._get("query_range", query=expression, start=start, end=end, step=step_s)

    def rules(self):
        """The rules that Prometheus evaluates, with their health and last error."""
        with urllib.request.urlopen(f"{self._url}/api/v1/rules", timeout=10) as answer:
            groups = json.load(answer)["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def close(self):
        if self._prometheus is not None:
            self._prometheus.terminate()
            self._prometheus.wait(30)
        self.server.close()

    def _start_prometheus(self):
        """With deploy/prometheus/prometheus.yml, but for intervals and the server's address."""
        source = ROOT / "deploy" / "prometheus"
        config = yaml.safe_load((source / "prometheus.yml").read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(source / name) for name in config["rule_files"]]
        targets = self._folder / "targets.yml"
        listed = [{"targets": [self.server.address("metrics")]}]
        targets.write_text(yaml.safe_dump(listed), encoding="utf-8")
        config["scrape_configs"][0]["file_sd_configs"] = [{"files": [str(targets)]}]
        config_path = self._folder / "prometheus.yml"
        config_path.write_text(yaml.safe_dump(config), encoding="utf-8")
        address = f"127.0.0.1:{free_port()}"
        self._url = f"http://{address}"
        log_path = self._folder / "prometheus.log"
        with open(log_path, "wb") as log:
            self._prometheus = subprocess.Popen(
                ["prometheus", f"--config.file={config_path}", f"--web.listen-address={address}",
                 f"--storage.tsdb.path={self._folder / 'tsdb'}"], stdout=log, stderr=log)

        def is_scraping():
            if self._prometheus.poll() is not None:
                raise RuntimeError(f"prometheus ended: {log_path.read_text(encoding='utf-8')}")
            with contextlib.suppress(OSError):  # nobody listens yet, or 503: it is starting
                urllib.request.urlopen(f"{self._url}/-/ready", timeout=10).close()
                return bool(self.query("instance:tidal_model:info"))
            return False

        wait_until(is_scraping, "Prometheus has scraped the server")

    def _get(self, path, **parameters):
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters['query']}: {error.read().decode()}") from error


def dashboard_panels():
    """The panels with queries of Grafana's dashboard."""
    path = ROOT / "deploy" / "grafana" / "dashboards" / "tidal.json"
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    return [panel for panel in dashboard["panels"] if panel.get("targets")]


def with_variables(expression, rate_interval="5m"):
    """An expression as Grafana would send it, with all models and servers selected."""
    for name, value in (("$__rate_interval", rate_interval), ("$instance", ".+"),
                        ("$model", ".+")):
        expression = expression.replace(name, value)
    left = re.search(r"\$\w+", expression)
    if left:
        raise ValueError(f"{expression}: the variable {left.group()} is unknown")
    return expression
