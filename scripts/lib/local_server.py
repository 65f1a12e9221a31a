"""Starts the real tidal-server on free ports of the loopback address, for tests and drawings."""

import pathlib
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120


def wait_until(condition, what, timeout_s=START_TIMEOUT_S):
    """Raises TimeoutError, with `what` was waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s} s")
        time.sleep(0.1)


class LocalServer:
    """A tidal-server on the embedded model and the CPU; ready when the constructor returns.

    bin_dir: the programs' folder. folder: an empty one of the caller's, for ports and log.
    """

    def __init__(self, bin_dir, folder, *flags):
        self._bin_dir = pathlib.Path(bin_dir)
        self._port_file = pathlib.Path(folder) / "ports"
        self._log_path = pathlib.Path(folder) / "server.log"
        with open(self._log_path, "wb") as log:
            self._process = subprocess.Popen(
                [str(self._bin_dir / "tidal-server"), f"--model_path={ROOT / 'models' / 'needle'}",
                 "--listen_address=127.0.0.1:0", "--metrics_address=127.0.0.1:0",
                 f"--port_file={self._port_file}", "--device=cpu", *flags],
                stdout=log, stderr=log)
        try:
            wait_until(self._is_ready, "tidal-server is ready")
        except BaseException:
            self.close()
            raise

    def address(self, port="listen"):
        """Of "listen", gRPC's port, of "metrics", or of "health" where the flags ask for it."""
        return f"127.0.0.1:{self._ports()[port]}"

    def log(self):
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    def client(self, *arguments, check=True):
        """Runs tidal-client against the server. Raises RuntimeError where it fails and `check`."""
        command = [str(self._bin_dir / "tidal-client"), f"--target={self.address()}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: status {done.returncode}: {done.stderr}")
        return done

    def start_client(self, *arguments):
        """Starts tidal-client, with its standard output as a pipe."""
        command = [str(self._bin_dir / "tidal-client"), f"--target={self.address()}", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                text=True)

    def close(self):
        """SIGTERM, and the exit status; killed where that takes over 30 s."""
        self._process.terminate()
        try:
            return self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _ports(self):
        words = self._port_file.read_text(encoding="utf-8").split()
        return dict(zip(words[::2], map(int, words[1::2])))

    def _is_ready(self):
        if self._process.poll() is not None:
            raise RuntimeError(f"tidal-server ended: {self.log()}")
        if not self._port_file.exists() or "listen" not in self._ports():
            return False
        # Where gRPC's port is encrypted, health has a port of its own.
        port = "health" if "health" in self._ports() else "listen"
        check = [str(self._bin_dir / "tidal-client"), f"--target={self.address(port)}", "health"]
        return subprocess.run(check, capture_output=True, check=False).returncode == 0
