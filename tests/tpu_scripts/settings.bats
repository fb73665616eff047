# The settings file: parsed, checked, never executed.
load fake_cloud

refused() { # what it must say; nothing may have been called
  run tpu_scripts/create.sh
  code 2
  says "$@"
  [ ! -e "$CLOUD/calls" ] || { cat "$CLOUD/calls"; return 1; }
}

@test "the example file is valid once a config is there" {
  mkdir -p configs/block_expansion
  touch configs/block_expansion/tpu_v5e.yaml
  run tpu_scripts/create.sh --env tpu_scripts/example.env --dry-run
  code 0
  says "16 chips, 4 hosts, spot, v2-alpha-tpuv5-lite"
}

@test "every key of the table is in the example file, and no other" {
  run diff <(source tpu_scripts/settings.sh && setting_names | sort) \
    <(sed -n 's/^\([A-Z_]*\)=.*/\1/p' tpu_scripts/example.env | sort)
  code 0
}

@test "no settings file: says what to copy" {
  rm tpu_scripts/.env
  refused "no settings file: $CLOUD/checkout/tpu_scripts/.env" "Copy tpu_scripts/example.env"
}

@test "--env names another file" {
  mv tpu_scripts/.env elsewhere.env
  run tpu_scripts/create.sh --env elsewhere.env --dry-run
  code 0
  run tpu_scripts/create.sh --env=elsewhere.env --dry-run
  code 0
  run tpu_scripts/create.sh --env
  code 2
  says "--env needs a file"
}

@test "an unknown key: file, line and the nearest key" {
  also ZNOE=us-west4-a
  refused "tpu_scripts/.env:7: unknown key 'ZNOE'; did you mean ZONE?"
}

@test "an unknown key like no other: no guess, but the list" {
  also COLOUR_OF_THE_SKY=blue
  refused ".env:7: unknown key 'COLOUR_OF_THE_SKY'" "Known keys: NAME PROJECT ZONE"
  silent_about "did you mean"
}

@test "a required key that is missing or empty" {
  sed -i /^PROJECT/d tpu_scripts/.env
  refused ".env: PROJECT is missing; expected the id of a Google Cloud project"
  also PROJECT=
  refused ".env: PROJECT is missing"
}

@test "a key that is given twice, a line that is none, a value that cannot be" {
  also ZONE=us-east1-d
  refused ".env:7: ZONE is given twice"
  sed -i '$d' tpu_scripts/.env
  also "just words"
  refused ".env:7: 'just words' is not KEY=VALUE"
  sed -i '$d' tpu_scripts/.env
  also WAIT_MINUTES=soon
  refused ".env:7: WAIT_MINUTES is 'soon'; expected a whole number of minutes"
  sed -i '$d' tpu_scripts/.env
  sed -i 's/on-demand/cheap/' tpu_scripts/.env
  refused ".env:5: PROVISIONING is 'cheap'; expected spot, on-demand or reserved"
}

@test "the file is never executed" {
  # The text of a command is what is tested here.
  # shellcheck disable=SC2016
  also 'NETWORK=$(touch hacked)'
  refused "NETWORK is '\$(touch hacked)'; expected the name of a VPC network"
  [ ! -e hacked ]
  sed -i '$d' tpu_scripts/.env
  also 'touch hacked'
  refused "is not KEY=VALUE"
  [ ! -e hacked ]
  sed -i '$d' tpu_scripts/.env
  # A value that is allowed to hold such text reaches the worker as text.
  # shellcheck disable=SC2016
  also 'OVERRIDES=data.name=$(touch${IFS}hacked)'
  run tpu_scripts/launch.sh --dry-run
  code 0
  # shellcheck disable=SC2016
  says 'data.name=$(touch${IFS}hacked)'
  [ ! -e hacked ]
}

@test "quotes, spaces, comments and Windows line ends" {
  settings "NAME = mine" "PROJECT='my-project'  # ours" 'ZONE="us-west4-a"' "ACCELERATOR_TYPE=v5litepod-8 # eight" \
    "  # a comment" "" "CONFIG=configs/mine.yaml"$'\r' "NETWORK=  # none"
  run tpu_scripts/create.sh --dry-run
  code 0
  says "create mine --node-id=mine --project=my-project --zone=us-west4-a --accelerator-type=v5litepod-8"
  silent_about "--network"
  also "SUBNETWORK='open"
  refused ".env:9: SUBNETWORK: the quote is not closed"
}

@test "each family has its software version, chips and hosts" {
  local line type
  for line in "v4-8 4 chips, 1 host tpu-ubuntu2204-base" "v4-16 8 chips, 2 hosts tpu-ubuntu2204-base" \
    "v5litepod-1 1 chips, 1 host v2-alpha-tpuv5-lite" "v5litepod-8 8 chips, 1 host v2-alpha-tpuv5-lite" \
    "v5litepod-16 16 chips, 4 hosts v2-alpha-tpuv5-lite" "v5p-8 4 chips, 1 host v2-alpha-tpuv5" \
    "v5p-128 64 chips, 16 hosts v2-alpha-tpuv5" "v6e-8 8 chips, 1 host v2-alpha-tpuv6e" \
    "v6e-256 256 chips, 64 hosts v2-alpha-tpuv6e"; do
    type=${line%% *}
    line=${line#* }
    sed -i "s/^ACCELERATOR_TYPE=.*/ACCELERATOR_TYPE=$type/" tpu_scripts/.env
    run tpu_scripts/create.sh --dry-run
    code 0
    says "$type, ${line% *}, on-demand, ${line##* }," "--runtime-version=${line##* } "
  done
}

@test "types that do not exist" {
  local type
  for type in "v5litepod-12:v5litepod comes in sizes 1, 4, 8, 16" "v6e-2:v6e comes in sizes" \
    "v5p-12:counts TensorCores" "v9-8:expected v4-N, v5litepod-N" "v5e-16:Google writes v5e as v5litepod-16" \
    "v4:expected a type such as v5litepod-16"; do
    sed -i "s/^ACCELERATOR_TYPE=.*/ACCELERATOR_TYPE=${type%%:*}/" tpu_scripts/.env
    refused "ACCELERATOR_TYPE is '${type%%:*}'" "${type#*:}"
  done
}

@test "a software version of another family" {
  also RUNTIME_VERSION=v2-alpha-tpuv6e
  refused "RUNTIME_VERSION is v2-alpha-tpuv6e, which is for v6e, and ACCELERATOR_TYPE is v5litepod-8" \
    "Expected v2-alpha-tpuv5-lite"
  sed -i 's/^RUNTIME_VERSION=.*/RUNTIME_VERSION=v2-alpha-tpuv5/' tpu_scripts/.env
  refused "which is for v5p"
  # One that belongs to no family (tpu-ubuntu2204-base) is the user's business.
  sed -i 's/^RUNTIME_VERSION=.*/RUNTIME_VERSION=tpu-ubuntu2204-base/' tpu_scripts/.env
  run tpu_scripts/create.sh --dry-run
  code 0
}

@test "tpu7x only for those who name the software version" {
  sed -i "s/^ACCELERATOR_TYPE=.*/ACCELERATOR_TYPE=tpu7x-16/" tpu_scripts/.env
  refused "Google does not offer TPU7x through queued resources" "Use GKE or Compute Engine"
  also RUNTIME_VERSION=v2-alpha-tpu7-ubuntu2404
  run tpu_scripts/create.sh --dry-run
  code 0
  says "8 chips, 2 hosts" "--accelerator-type=tpu7x-16 --runtime-version=v2-alpha-tpu7-ubuntu2404"
}

@test "files that are named must be there, inside the checkout" {
  also "DATA=corpus notes.txt"
  refused "no such file: $CLOUD/checkout/corpus"
  mkdir corpus && touch notes.txt
  run tpu_scripts/sync.sh push --dry-run
  code 0
  says " configs/mine.yaml corpus notes.txt"
  sed -i 's#^DATA=.*#DATA=corpus/../../secrets#' tpu_scripts/.env
  refused "'corpus/../../secrets' has '..' in it"
  sed -i 's#^DATA=.*#HF_TOKEN_FILE=/nowhere/token#' tpu_scripts/.env
  refused "HF_TOKEN_FILE: no such file, or empty: /nowhere/token"
}

@test "output: below the shared folder only where one is mounted; never twice" {
  also OUTPUT=/mnt/shared/runs/mine
  refused "nothing is mounted at /mnt/shared" "SHARED=gs://my-bucket"
  sed -i 's#^OUTPUT=.*#OUTPUT=/somewhere/else#' tpu_scripts/.env
  refused ".env:7: OUTPUT is '/somewhere/else'; expected a run folder: below /mnt/shared"
  sed -i 's#^OUTPUT=.*#OVERRIDES=train.steps=3 output=runs/x#' tpu_scripts/.env
  refused "use the key OUTPUT"
}

@test "unknown arguments print the usage" {
  local script
  for script in create setup launch watch sync delete; do
    run tpu_scripts/$script.sh --fast
    code 2
    says "error: unknown argument: --fast" "usage: tpu_scripts/$script.sh"
    run tpu_scripts/$script.sh --help
    code 0
    says "usage: tpu_scripts/$script.sh" "Exit codes:"
  done
  run tpu_scripts/sync.sh
  code 2
  run tpu_scripts/sync.sh push pull
  code 2
}

@test "no gcloud on this machine" {
  # A PATH with what the scripts need and nothing else: this machine may have a real one.
  local tool
  mkdir "$CLOUD/few"
  for tool in bash env dirname cat cut awk tr date; do ln -s "$(command -v $tool)" "$CLOUD/few/$tool"; done
  PATH=$CLOUD/few run tpu_scripts/create.sh
  code 1
  says "gcloud is not installed"
  PATH=$CLOUD/few run tpu_scripts/create.sh --dry-run
  code 0
}
