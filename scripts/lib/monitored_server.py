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
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(condition, what, timeout_s=START_TIMEOUT_S):
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s} s")
        time.sleep(0.1)


class MonitoredServer:
    """Both processes; close() ends them."""

    def __init__(self, bin_dir, folder, *flags):
        self._bin_dir = pathlib.Path(bin_dir)
        self._folder = pathlib.Path(folder)
        self._processes = []
        try:
            ports = self._start_server(flags)
            self.target = f"127.0.0.1:{ports['listen']}"
            self.metrics_target = f"127.0.0.1:{ports['metrics']}"
            self._start_prometheus()
        except BaseException:
            self.close()
            raise

    def client(self, *arguments, check=True):
        """Runs tidal-client against the server."""
        command = [str(self._bin_dir / "tidal-client"), f"--target={self.target}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=check)

    def start_client(self, *arguments):
        """Starts tidal-client, with its standard output as a pipe."""
        command = [str(self._bin_dir / "tidal-client"), f"--target={self.target}", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                text=True)

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
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, name, command):
        with open(self._folder / f"{name}.log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def _log(self, name):
        return (self._folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def _start_server(self, flags):
        port_file = self._folder / "ports"
        process = self._start("server", [
            str(self._bin_dir / "tidal-server"), f"--model_path={ROOT / 'models' / 'needle'}",
            "--listen_address=127.0.0.1:0", "--metrics_address=127.0.0.1:0",
            f"--port_file={port_file}", "--device=cpu", *flags])

        def is_ready():
            if process.poll() is not None:
                raise RuntimeError(f"tidal-server ended: {self._log('server')}")
            if not port_file.exists():
                return False
            words = port_file.read_text(encoding="utf-8").split()
            ports.update(zip(words[::2], map(int, words[1::2])))
            self.target = f"127.0.0.1:{ports.get('listen', 0)}"
            return self.client("health", check=False).returncode == 0

        ports = {}
        wait_until(is_ready, "tidal-server is ready")
        return ports

    def _start_prometheus(self):
        """With deploy/prometheus/prometheus.yml, but for intervals and the server's address."""
        source = ROOT / "deploy" / "prometheus"
        config = yaml.safe_load((source / "prometheus.yml").read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(source / name) for name in config["rule_files"]]
        targets = self._folder / "targets.yml"
        targets.write_text(yaml.safe_dump([{"targets": [self.metrics_target]}]), encoding="utf-8")
        config["scrape_configs"][0]["file_sd_configs"] = [{"files": [str(targets)]}]
        config_path = self._folder / "prometheus.yml"
        config_path.write_text(yaml.safe_dump(config), encoding="utf-8")
        address = f"127.0.0.1:{free_port()}"
        self._url = f"http://{address}"
        process = self._start("prometheus", [
            "prometheus", f"--config.file={config_path}", f"--web.listen-address={address}",
            f"--storage.tsdb.path={self._folder / 'tsdb'}"])

        def is_scraping():
            if process.poll() is not None:
                raise RuntimeError(f"prometheus ended: {self._log('prometheus')}")
            with contextlib.suppress(OSError):
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
