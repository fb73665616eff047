#!/usr/bin/env bash
# Starts `jaxrecipes run CONFIG` on every worker, in the background, and comes back.
#
# usage: tpu_scripts/launch.sh [--env FILE] [--dry-run]
#
# A worker on which it is running already is left alone. tpu_scripts/watch.sh follows the run.
# Exit codes: 0 started; 1 not; 2 usage or settings.
set -euo pipefail
# shellcheck source=gcloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

read_command_line '' "$@"
[ "$HOSTS" -eq 1 ] || require_shared_output "$ACCELERATOR_TYPE has $HOSTS hosts, and all must see one run folder"
describe_settings
read -r -a words <<<"$CONFIG $OVERRIDES"
[ -z "$OUTPUT" ] || words+=("output=$OUTPUT")
on_workers all "$WORKER start $(quoted "${words[@]}")" ||
  fail 1 "$NAME: the run was not started on every worker; the messages are above" \
    "Was it set up? tpu_scripts/setup.sh"
dry_run || say "$NAME: started; follow it with tpu_scripts/watch.sh"
