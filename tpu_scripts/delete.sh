#!/usr/bin/env bash
# Deletes the TPU and its request, with everything on its disks. What is in a bucket or share stays.
#
# usage: tpu_scripts/delete.sh [--yes] [--env FILE] [--dry-run]
#
# --yes does not ask. Exit codes: 0 nothing is left that costs; 1 something may be; 2 usage or settings.
set -euo pipefail
# shellcheck source=gcloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

delete() {
  # --force: its VMs too.
  run gcloud compute tpus queued-resources delete "$NAME" --project="$PROJECT" --zone="$ZONE" --force --quiet
}

read_command_line '--yes' "$@"
describe_settings
if dry_run; then
  comment "does it exist?"
  describe_slice
  delete
  comment "until nothing is found:"
  describe_slice
  exit 0
fi
if [ "$(slice_state)" = NOT_FOUND ]; then
  say "$NAME: there is none in $ZONE"
  exit 0
fi
if ! has_argument --yes; then
  [ -t 0 ] || fail 2 "nobody is there to ask whether to delete $NAME; give --yes"
  printf 'Delete %s (%s) in %s with everything on its disks? [y/N] ' "$NAME" "$ACCELERATOR_TYPE" "$ZONE" >&2
  read -r answer
  case $answer in y | Y | yes) ;; *) fail 1 "$NAME was not deleted" ;; esac
fi
# A slice that is being suspended cannot be deleted yet; Google then says so and takes it later.
for try in 1 2 3 4 5; do
  if delete || [ "$(slice_state)" = NOT_FOUND ]; then
    say "$NAME is deleted"
    exit 0
  fi
  [ "$try" -eq 5 ] || sleep "$POLL_SECONDS"
done
fail 1 "$NAME could not be deleted and may still cost money; gcloud's message is above" \
  "Try again, or: $(quoted gcloud compute tpus tpu-vm delete "$NAME" "--project=$PROJECT" "--zone=$ZONE")"
