#!/usr/bin/env bash
# Builds the image --target=cpu of the Dockerfile without a daemon or a registry, and serves from it
# as a cluster would: process 1, not root, no capabilities, a read-only root filesystem. Ends with
# "passed" or with what is wrong.
#
#   sudo scripts/try_image.sh [--base=IMAGE] [--tests=on|off] [--jobs=N] [--keep]
#
# Needs root and Debian's packages buildah and debootstrap. --base: what stands for the Dockerfile's
# CPU_BASE; by default a Debian 12 that debootstrap makes. --keep leaves the image, as
# localhost/tidal:cpu. TIDAL_DEBIAN_MIRROR: where debootstrap loads packages from.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

base=
tests=on
jobs=0
keep=no
for argument in "$@"; do
  case $argument in
    --base=*) base=${argument#*=} ;;
    --tests=on | --tests=off) tests=${argument#*=} ;;
    --jobs=*) jobs=${argument#*=} ;;
    --keep) keep=yes ;;
    *)
      sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
      exit 2
      ;;
  esac
done

image=localhost/tidal:cpu
work=$(mktemp -d)
container=
server_pid=
clean_up() {
  if [[ -n $server_pid ]]; then kill -KILL "$server_pid" 2>/dev/null || true; fi
  if [[ -n $container ]]; then buildah rm "$container" >/dev/null || true; fi
  if [[ $keep == no ]]; then buildah rmi "$image" >/dev/null 2>&1 || true; fi
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

fail() {
  echo "try_image.sh: $1" >&2
  if [[ -s $work/server.log ]]; then tail -n 20 "$work/server.log" >&2; fi
  exit 1
}

make_base() {
  base=localhost/tidal-debian:bookworm
  if buildah inspect --type image "$base" >/dev/null 2>&1; then return; fi
  echo "Making $base with debootstrap ..."
  debootstrap --variant=minbase bookworm "$work/debian" \
    "${TIDAL_DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$work/debootstrap.log" ||
    fail "debootstrap failed: $(tail -n 3 "$work/debootstrap.log")"
  local scratch
  scratch=$(buildah from scratch)
  buildah copy --quiet "$scratch" "$work/debian" / >/dev/null
  buildah commit --quiet --rm "$scratch" "$base" >/dev/null
  rm -rf "$work/debian"
}

build_image() {
  # Format docker: OCI's has no health check.
  buildah build --isolation=chroot --layers --format=docker --pull-never --target=cpu \
    --tag="$image" --build-arg=CPU_BASE="$base" --build-arg=TESTS="$tests" \
    --build-arg=JOBS="$jobs" \
    --build-arg=REVISION="$(git rev-parse HEAD 2>/dev/null || echo unknown)" .
}

expect_config() { # what template value
  local value
  value=$(buildah inspect --type image --format "$2" "$image")
  [[ $value == "$3" ]] || fail "$1 is '$value', not '$3'"
  echo "ok: $1 is $value"
}

# Runs a program of the image as a container would be, but on the host's network.
run_in_image() { # program argument...
  # shellcheck disable=SC2016
  unshare --mount --pid --fork --kill-child=KILL -- sh -c '
    root=$1; shift
    mount --make-rprivate / && mount --bind "$root" "$root" && mount --rbind /dev "$root/dev" &&
      mount -t proc proc "$root/proc" && mount -o remount,ro,bind "$root" || exit 125
    exec chroot "$root" setpriv --reuid=65532 --regid=65532 --clear-groups --no-new-privs \
      --inh-caps=-all --bounding-set=-all "$@"' sh "$root" "$@"
}

free_port() {
  python3 -c '
import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])'
}

# Sets server_pid, and shell_pid: what to wait for.
start_server() { # flag...
  local deadline=$((SECONDS + 120))
  run_in_image /opt/tidal/bin/tidal-server --listen_address="127.0.0.1:$port" \
    --metrics_address="127.0.0.1:$metrics_port" "$@" >"$work/server.log" 2>&1 &
  shell_pid=$!
  until run_client health >/dev/null 2>&1; do
    kill -0 "$shell_pid" 2>/dev/null || fail "the server ended before it was ready"
    ((SECONDS < deadline)) || fail "the server was not ready within 120 s"
    sleep 0.2
  done
  # The shell of this function's job has started unshare, and that the server.
  server_pid=$(pgrep -P "$(pgrep -P "$shell_pid")")
}

run_client() { # argument...
  run_in_image /opt/tidal/bin/tidal-client --target="127.0.0.1:$port" "$@"
}

check_process() {
  local status=/proc/$server_pid/status
  [[ $(cat "/proc/$server_pid/comm") == tidal-server ]] ||
    fail "process $server_pid is not the server"
  [[ $(awk '$1 == "Uid:" {print $2, $3, $4, $5}' "$status") == "65532 65532 65532 65532" ]] ||
    fail "the server's user is not 65532"
  [[ $(awk '$1 == "NSpid:" {print $NF}' "$status") == 1 ]] || fail "the server is not process 1"
  [[ $(awk '/^Cap(Prm|Eff|Bnd)/ {print $2}' "$status" | sort -u) == 0000000000000000 ]] ||
    fail "the server has capabilities"
  [[ $(awk '$1 == "NoNewPrivs:" {print $2}' "$status") == 1 ]] || fail "privileges could be gained"
  echo "ok: the server is process 1, user 65532, without capabilities"
  if run_in_image touch /tmp/probe 2>/dev/null; then fail "the root filesystem can be written"; fi
  awk '$2 == "/" {print $4}' "/proc/$server_pid/mounts" | grep -qE '^ro(,|$)' ||
    fail "the server's root filesystem is not read-only"
  echo "ok: the root filesystem is read-only"
}

# The embedded model finds a passphrase in 8,000 tokens.
check_answer() {
  local answer
  python3 models/needle/grammar.py --tokens 8000 --depth 0.5 --seed 7 --json >"$work/needle.json"
  python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["prompt"], end="")' \
    "$work/needle.json" >"$work/prompt"
  answer=$(run_client generate - --temperature=0 --max_new_tokens=64 <"$work/prompt" \
    2>"$work/summary") || fail "the call failed: $(cat "$work/summary")"
  python3 - "$work/needle.json" "$answer" <<'PYTHON' || fail "the answer is wrong: $answer"
import json, sys
needle = json.load(open(sys.argv[1]))
sys.exit(needle["answer"].split() != sys.argv[2].split())
PYTHON
  echo "ok: the answer over gRPC is right:$(tr '\n' ' ' <<<" $answer")"
  python3 - "$metrics_port" <<'PYTHON' || fail "the metrics do not count the call"
import re, sys, urllib.request
with urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics", timeout=10) as answer:
    text = answer.read().decode()
one_call = r'^tidal_requests_total{code="OK",method="[^"]*GenerateStream"} 1$'
sys.exit(not re.search(one_call, text, re.MULTILINE))
PYTHON
  echo "ok: /metrics counts it"
}

check_stop() {
  local status=0
  kill -TERM "$server_pid"
  wait "$shell_pid" || status=$?
  server_pid=
  ((status == 0)) || fail "after SIGTERM the exit status is $status"
  echo "ok: SIGTERM ends it with exit status 0"
}

if ((EUID != 0)); then fail "needs root"; fi
for program in buildah debootstrap unshare setpriv python3; do
  command -v "$program" >/dev/null || fail "$program is not installed"
done
if [[ -z $base ]]; then make_base; fi
build_image
expect_config "the user" '{{.Docker.Config.User}}' 65532:65532
expect_config "the entry point" '{{.Docker.Config.Entrypoint}}' '[/opt/tidal/bin/tidal-server]'
expect_config "the stop signal" '{{.Docker.Config.StopSignal}}' SIGTERM
expect_config "the health check" '{{.Docker.Config.Healthcheck.Test}}' \
  '[CMD /opt/tidal/bin/tidal-client health]'
container=$(buildah from --pull-never "$image")
root=$(buildah mount "$container")
megabytes() { du -sm "$1" | cut -f1; } # folder
echo "the image takes $(megabytes "$root") MiB, of it Tidal $(megabytes "$root/opt/tidal") MiB"
port=$(free_port)
metrics_port=$(free_port)
mapfile -t arguments < <(buildah inspect --type image \
  --format '{{range .Docker.Config.Cmd}}{{println .}}{{end}}' "$image" | sed '/^$/d')
start_server "${arguments[@]}"
check_process
check_answer
check_stop
echo passed
