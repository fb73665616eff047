#!/usr/bin/env bash
# Copies code to the workers and results back.
#
# usage: tpu_scripts/sync.sh push                    [--env FILE] [--dry-run]
#        tpu_scripts/sync.sh pull [--weights]        [--env FILE] [--dry-run]
#        tpu_scripts/sync.sh logs                    [--env FILE] [--dry-run]
#
# push  this checkout as it is, CONFIG and DATA, to every worker
# pull  the run folder and worker 0's log to runs/NAME; --weights: checkpoints and exported models too
# logs  prints the last lines of every worker's log
# Exit codes: 0 done; 1 not; 2 usage or settings.
set -euo pipefail
# shellcheck source=gcloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

# What the package is built from. A fixed list, so that no old run or environment is sent along.
PACKAGE=(jaxrecipes configs tpu_scripts pyproject.toml constraints.txt README.md LICENSE)

push() {
  local folder=$CHECKOUT/.cache paths
  # One of its own for each push, two may happen at a time; git ignores the folder.
  archive=$folder/$NAME-$$.tar.gz
  read -r -a paths <<<"$CONFIG $DATA"
  run mkdir -p "$folder"
  dry_run || trap 'rm -f "$archive"' EXIT
  # COPYFILE_DISABLE: the tar of macOS would add a second file, ._NAME, for each.
  run env COPYFILE_DISABLE=1 tar -czf "$archive" -C "$CHECKOUT" --exclude=__pycache__ --exclude=.env \
    "${PACKAGE[@]}" "${paths[@]}"
  on_workers all "mkdir -p $REMOTE_CODE"
  copy all "$archive" "$NAME:$REMOTE_CODE.tar.gz"
  # Files that are gone here must be gone there, or they would be part of the package.
  on_workers all "rm -rf $REMOTE_CODE/jaxrecipes $REMOTE_CODE/tpu_scripts && tar -xzf $REMOTE_CODE.tar.gz -C $REMOTE_CODE"
  run rm "$archive"
}

pull() {
  local target=$CHECKOUT/runs/$NAME which=small
  if has_argument --weights; then which=all; fi
  run mkdir -p "$target"
  case $SHARED:$OUTPUT in
    gs://*:/mnt/shared/*) pull_bucket "$target" || return ;;
    *)
      [ -n "$OUTPUT" ] || fail 2 "$SETTINGS_FILE: OUTPUT is not set; sync.sh must know where the run folder is"
      on_workers 0 "$WORKER pack $(quoted "$OUTPUT") $which"
      copy 0 "$NAME:$REMOTE_JOB/run.tar.gz" "$target/run.tar.gz"
      run tar -xzf "$target/run.tar.gz" -C "$target"
      run rm "$target/run.tar.gz"
      ;;
  esac
  # The log is on the VM's disk; a run that is done may have no VM any more.
  copy 0 "$NAME:$REMOTE_JOB/run.log" "$target/run.log" ||
    say "$NAME: no log (is the slice deleted? was the run started?)"
  dry_run || say "results are in $target"
}

pull_bucket() { # target; straight from the bucket, so it works when the TPU is gone
  local options=(--recursive)
  has_argument --weights || options+=('--exclude=(^|.*/)(checkpoints|final|base|cache)/.*')
  run gcloud storage rsync "$SHARED/${OUTPUT#/mnt/shared/}" "$1" "${options[@]}"
}

read_command_line 'push pull logs --weights' "$@"
describe_settings
case $ARGUMENTS in
  ' push ') push ;;
  ' pull ' | ' pull --weights ' | ' --weights pull ') pull ;;
  ' logs ') on_workers all "$WORKER log 40" ;;
  *)
    print_help >&2
    exit 2
    ;;
esac
