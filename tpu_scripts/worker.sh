#!/usr/bin/env bash
# What happens on one worker (a TPU VM). The other scripts call this over ssh; sync.sh brings it there.
#
# usage: worker.sh install | env | mount WHAT | start CONFIG [key=value ...] | status | stop [SECONDS]
#        worker.sh log [LINES] | pack FOLDER small|all
#
# Below ~/jaxrecipes: code/ (the checkout, and where the run works), venv/ (Python 3.12), and job/ with
# run.log, pid, exit_code (when it has ended) and lock (held as long as the run's process lives).
set -euo pipefail

home=$HOME/jaxrecipes
code=$home/code
venv=$home/venv
job=$home/job
shared=/mnt/shared

install() {
  command -v python3 >/dev/null || { echo "error: $(hostname): no python3 on this image" >&2; exit 1; }
  # uv brings Python 3.12 where the image has another one. Images with Python 3.12 refuse pip outside of
  # an environment, unless told that this is meant.
  if ! [ -x "$HOME/.local/bin/uv" ]; then
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet --disable-pip-version-check uv
  fi
  local uv=$HOME/.local/bin/uv
  [ -x "$venv/bin/python" ] || "$uv" venv --quiet --python 3.12 "$venv"
  # --reinstall-package: uv would keep what it built before from the same folder.
  "$uv" pip install --quiet --python "$venv/bin/python" --constraints "$code/constraints.txt" \
    --reinstall-package jaxrecipes "${code}[tpu]"
  echo "$(hostname): jaxrecipes is installed in $venv"
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc site=https://packages.cloud.google.com/apt
  curl -fsSL "$site/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $site gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  apt_install gcsfuse
}

apt_install() {
  # A new VM updates itself at first; wait for that instead of failing.
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
  sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=600 install "$@"
}

mount_shared() { # gs://bucket or server:/share
  if ! mountpoint -q "$shared"; then
    sudo mkdir -p "$shared"
    case $1 in
      gs://*)
        command -v gcsfuse >/dev/null || install_gcsfuse
        sudo chown "$(id -u):$(id -g)" "$shared"
        # No cached metadata: a host must see what another one has just written. The limit on renames
        # counts for buckets without a hierarchical namespace only; there, a folder's files move one by one.
        gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=200000 "${1#gs://}" "$shared"
        ;;
      *)
        command -v mount.nfs >/dev/null || apt_install nfs-common
        sudo mount -t nfs -o rw,hard,noac "$1" "$shared"
        # A share may refuse this to root and be writable all the same; the probe below decides.
        sudo chown "$(id -u):$(id -g)" "$shared" || true
        ;;
    esac
  fi
  local probe
  probe=$shared/.jaxrecipes-probe-$(hostname)
  if ! touch "$probe" || ! rm "$probe"; then
    echo "error: $(hostname): cannot write to $shared ($1); may the VM's service account write there?" >&2
    exit 1
  fi
  echo "$(hostname): $1 is at $shared"
}

running() { [ -e "$job/lock" ] && ! flock --nonblock "$job/lock" true; }

start() { # config, overrides
  [ -x "$venv/bin/jaxrecipes" ] || { echo "error: $(hostname): jaxrecipes is not installed; tpu_scripts/setup.sh" >&2; exit 1; }
  mkdir -p "$job"
  if running; then
    echo "$(hostname): running already, process $(cat "$job/pid")"
    return
  fi
  rm -f "$job/pid" "$job/exit_code"
  # A session of its own: neither the end of ssh nor its terminal reaches the run.
  setsid nohup bash "$code/tpu_scripts/worker.sh" supervise "$@" </dev/null >>"$job/run.log" 2>&1 &
  local try
  for ((try = 0; try < 300; try++)); do
    if [ -s "$job/pid" ]; then
      echo "$(hostname): started, process $(cat "$job/pid"), log $job/run.log"
      return
    fi
    sleep 0.1
  done
  echo "error: $(hostname): the run did not start; see $job/run.log" >&2
  exit 1
}

supervise() { # The parent of the run: keeps the lock, writes down the exit code.
  local code_of_run=0
  exec 9>"$job/lock"
  flock --nonblock 9 || exit 0
  cd "$code"
  # A machine that shuts down sends SIGTERM to both; the run saves its state and ends with 75, and this
  # must outlive it to write that down. A handler that does nothing, unlike an ignored signal, is not
  # inherited.
  trap : TERM INT HUP
  echo "== $(date -u '+%Y-%m-%d %H:%M:%S') UTC: jaxrecipes run $*"
  # In the foreground: bash keeps signals for later and returns the run's code, not its own.
  (
    echo "$BASHPID" >"$job/pid"
    exec "$venv/bin/jaxrecipes" run "$@"
  ) || code_of_run=$?
  echo "== $(date -u '+%Y-%m-%d %H:%M:%S') UTC: ended with exit code $code_of_run"
  echo "$code_of_run" >"$job/exit_code.partial"
  mv "$job/exit_code.partial" "$job/exit_code"
}

status() { # One line that watch.sh reads: running, exit N, lost (ended without a word) or none.
  local state
  if running; then
    state=running
  elif [ -s "$job/exit_code" ]; then
    state="exit $(cat "$job/exit_code")"
  elif [ -e "$job/pid" ]; then
    state=lost
  else
    state=none
  fi
  echo "jaxrecipes-status $(hostname) $state"
}

stop() { # seconds to wait before it is killed
  local waited=0 limit=${1:-60} pid
  running || return 0
  pid=$(cat "$job/pid")
  kill -TERM "$pid" 2>/dev/null || true
  while running && [ "$waited" -lt "$limit" ]; do
    sleep 1
    waited=$((waited + 1))
  done
  # A host that waits in a collective for one that is gone never comes to answer the first signal.
  if running; then kill -KILL "$pid" 2>/dev/null || true; fi
  echo "$(hostname): stopped"
}

log() { # lines
  echo "== $(hostname): $job/run.log"
  tail -n "${1:-40}" "$job/run.log" || true
}

pack() { # folder, small or all
  local exclude=()
  cd "$code"
  [ -d "$1" ] || { echo "error: $(hostname): no run folder: $1" >&2; exit 1; }
  [ "$2" = all ] || exclude=(--exclude=checkpoints --exclude=final --exclude=base --exclude=cache)
  tar -czf "$job/run.tar.gz" "${exclude[@]}" -C "$1" .
}

action=${1:-}
[ $# -eq 0 ] || shift
case $action in
  install | start | supervise | status | stop | log | pack) "$action" "$@" ;;
  mount) mount_shared "$@" ;;
  env) "$venv/bin/jaxrecipes" env ;;
  *)
    echo "error: worker.sh: unknown action: '$action'" >&2
    exit 2
    ;;
esac
