#!/usr/bin/env bash
# Makes every worker ready: code, Python 3.12, jaxrecipes[tpu], the shared folder. May be repeated.
#
# usage: tpu_scripts/setup.sh [--env FILE] [--dry-run]
#
# Ends with `jaxrecipes env` on every worker. Exit codes: 0 ready; 1 not; 2 usage or settings.
set -euo pipefail
# shellcheck source=gcloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

reach() { # A VM that is ACTIVE may need a minute until it takes an ssh key.
  local try
  comment "until every worker answers, at most 10 times:"
  for try in 1 2 3 4 5 6 7 8 9 10; do
    if on_workers all true; then return 0; fi
    say "$NAME: not every worker answers yet ($try of 10)"
    sleep "$POLL_SECONDS"
  done
  fail 1 "$NAME: cannot log in to every worker; ssh's message is above" \
    "Is port 22 open in the network's firewall? Without external addresses (INTERNAL_IPS=yes) this machine" \
    "must be in the same network."
}

read_command_line '' "$@"
describe_settings
reach
sync=("$SCRIPTS/sync.sh" push --env "$ENV_FILE")
if dry_run; then sync+=(--dry-run); fi
"${sync[@]}"
if [ -n "$HF_TOKEN_FILE" ]; then
  # As a file: on a command line the token would be seen in every process list and log.
  on_workers all 'mkdir -p -m 700 .cache/huggingface'
  copy all "$HF_TOKEN_FILE" "$NAME:.cache/huggingface/token"
  on_workers all 'chmod 600 .cache/huggingface/token'
fi
on_workers all "$WORKER install"
[ -z "$SHARED" ] || on_workers all "$WORKER mount $(quoted "$SHARED")"
# On all at once: a worker alone would wait for the others before it sees its chips.
on_workers all "$WORKER env"
