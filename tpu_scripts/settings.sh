# shellcheck shell=bash
# Reads the settings file of the TPU scripts and checks it. Sourced, not run.
#
# The file is parsed line by line and never executed, so no code in it runs. Written for bash 3.2, the
# one that macOS has: no associative arrays, no ${value@Q}.

# One line a key: name; required, or the default; what the value must match (ERE); what that means.
settings_table() {
  cat <<'TABLE'
NAME;required;^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$;small letters, digits and dashes, at most 50, a letter first
PROJECT;required;^[a-z][-a-z0-9.:]{4,61}[a-z0-9]$;the id of a Google Cloud project
ZONE;required;^[a-z]+-[a-z]+[0-9]+-[a-z]$;a zone such as us-west4-a
ACCELERATOR_TYPE;required;^[a-z0-9]+-[0-9]+$;a type such as v5litepod-16 (v5e), v6e-16, v5p-8 or v4-8
RUNTIME_VERSION;;^[a-z0-9][-a-z0-9.]*$;a TPU software version (empty: the one for the accelerator type)
PROVISIONING;spot;^(spot|on-demand|reserved)$;spot, on-demand or reserved
NETWORK;;^[a-z]([-a-z0-9]*[a-z0-9])?$;the name of a VPC network (empty: default)
SUBNETWORK;;^[a-z]([-a-z0-9]*[a-z0-9])?$;the name of a subnetwork
INTERNAL_IPS;no;^(yes|no)$;yes (VMs without external addresses) or no
SERVICE_ACCOUNT;;^[^@[:space:]]+@[^@[:space:]]+$;an address such as trainer@my-project.iam.gserviceaccount.com
WAIT_MINUTES;720;^[1-9][0-9]{0,4}$;a whole number of minutes, 1 or more
POLL_SECONDS;30;^[1-9][0-9]{0,3}$;a whole number of seconds, 1 or more
MAX_RESTARTS;50;^[0-9]{1,4}$;a whole number, 0 or more
CONFIG;required;^[^/[:space:]-][^[:space:]]*[.]ya?ml$;a .yaml file, its path written from the root of the checkout
OVERRIDES;;^[A-Za-z_][^[:space:]]*=[^[:space:]]*([[:space:]]+[A-Za-z_][^[:space:]]*=[^[:space:]]*)*$;key=value pairs with spaces between, such as train.steps=100 train.remat=full
OUTPUT;;^(/mnt/shared/)?[A-Za-z0-9_][-A-Za-z0-9_./]*$;a run folder: below /mnt/shared, or a path such as runs/mine on the VM's own disk
DATA;;^[^/[:space:]-][^[:space:]]*([[:space:]]+[^/[:space:]-][^[:space:]]*)*$;files and folders with spaces between, written from the root of the checkout
SHARED;;^(gs://[a-z0-9][-a-z0-9_.]+|[A-Za-z0-9.-]+:/[^[:space:]]*)$;a bucket (gs://my-bucket) or an NFS share (10.0.0.2:/share)
HF_TOKEN_FILE;;^[^[:space:]].*$;a file on this machine that holds a Hugging Face token
TABLE
}

fail() { # exit code, message lines
  local code=$1
  shift
  printf 'error: %s\n' "$1" >&2
  shift
  [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
  exit "$code"
}

setting_names() { settings_table | cut -d ';' -f 1; }

# Sets DEFAULT, PATTERN and MEANING of a key; fails where there is no such key.
find_setting() {
  local name
  while IFS=';' read -r name DEFAULT PATTERN MEANING; do
    [ "$name" != "$1" ] || return 0
  done <<<"$TABLE"
  return 1
}

nearest_setting() { # The key with the smallest edit distance, or nothing where none is near.
  setting_names | awk -v typed="$1" '
    function smaller(a, b) { return a < b ? a : b }
    function distance(a, b,    i, j, row, cost) {
      for (j = 0; j <= length(b); j++) row[0, j] = j
      for (i = 1; i <= length(a); i++) {
        row[i, 0] = i
        for (j = 1; j <= length(b); j++) {
          cost = substr(a, i, 1) != substr(b, j, 1)
          row[i, j] = smaller(smaller(row[i - 1, j], row[i, j - 1]) + 1, row[i - 1, j - 1] + cost)
        }
      }
      return row[length(a), length(b)]
    }
    BEGIN { best = 1000 }
    { d = distance(toupper(typed), $0); if (d < best) { best = d; name = $0 } }
    END { if (best * 2 <= length(typed) + 1) print name }'
}

# These two leave their answer in TEXT: a subshell for each line would make every script slow to start.
trim() {
  TEXT=$1
  TEXT=${TEXT#"${TEXT%%[![:space:]]*}"}
  TEXT=${TEXT%"${TEXT##*[![:space:]]}"}
}

unquote() { # file:line and key, value
  local where=$1 value=$2 quote=${2:0:1} rest
  case $quote in
    \' | \")
      rest=${value:1}
      case $rest in
        *"$quote"*) ;;
        *) fail 2 "$where: the quote is not closed" ;;
      esac
      value=${rest%%"$quote"*}
      trim "${rest#*"$quote"}"
      case $TEXT in
        '' | '#'*) ;;
        *) fail 2 "$where: text after the closing quote: $TEXT" ;;
      esac
      TEXT=$value
      ;;
    '#') TEXT='' ;;
    *) trim "${value%%[[:space:]]#*}" ;;
  esac
}

read_settings() { # file -> one shell variable a key, all of them set and checked
  local file=$1 line key value near number=0 seen=' ' rest TABLE TEXT DEFAULT PATTERN MEANING
  [ -f "$file" ] || fail 2 "no settings file: $file" \
    "Copy tpu_scripts/example.env to tpu_scripts/.env and edit it, or name another one: --env FILE"
  [ -r "$file" ] || fail 2 "$file: cannot be read"
  TABLE=$(settings_table)
  while IFS=';' read -r key value rest; do
    [ "$value" != required ] || value=''
    printf -v "$key" '%s' "$value"
  done <<<"$TABLE"
  while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    trim "${line%$'\r'}"
    line=$TEXT
    case $line in
      '' | '#'*) continue ;;
      *=*) ;;
      *) fail 2 "$file:$number: '$line' is not KEY=VALUE" ;;
    esac
    trim "${line%%=*}"
    key=$TEXT
    if ! find_setting "$key"; then
      near=$(nearest_setting "$key")
      fail 2 "$file:$number: unknown key '$key'${near:+; did you mean $near?}" \
        "Known keys: $(setting_names | tr '\n' ' ')"
    fi
    case $seen in
      *" $key "*) fail 2 "$file:$number: $key is given twice; keep one" ;;
    esac
    seen="$seen$key "
    trim "${line#*=}"
    unquote "$file:$number: $key" "$TEXT"
    value=$TEXT
    [ -n "$value" ] || continue # An empty value is the default.
    [[ $value =~ $PATTERN ]] || fail 2 "$file:$number: $key is '$value'; expected $MEANING"
    printf -v "$key" '%s' "$value"
  done <"$file"
  while IFS=';' read -r key DEFAULT PATTERN MEANING; do
    [ "$DEFAULT" != required ] || [ -n "${!key}" ] || fail 2 "$file: $key is missing; expected $MEANING"
  done <<<"$TABLE"
  SETTINGS_FILE=$file
  check_accelerator
  check_paths
}

# Sizes and software versions: Google's pages "TPU software versions" and "TPU v4", "v5e", "v5p", "v6e".
# The number in a type counts chips for v5e and v6e, and TensorCores, two a chip, for the others.
# shellcheck disable=SC2034 # Sets CHIPS and HOSTS for the scripts; RUNTIME_VERSION too where the file leaves it open.
check_accelerator() {
  local family=${ACCELERATOR_TYPE%%-*} size=${ACCELERATOR_TYPE##*-} sizes runtime cores=1 smallest
  case $family in
    v4) sizes='8 16 32 64 128 256 512 1024 1536 2048 3072 4096' runtime=tpu-ubuntu2204-base cores=2 ;;
    v5litepod) sizes='1 4 8 16 32 64 128 256' runtime=v2-alpha-tpuv5-lite ;;
    v5p) sizes='' runtime=v2-alpha-tpuv5 cores=2 smallest=8 ;;
    v6e) sizes='1 4 8 16 32 64 128 256' runtime=v2-alpha-tpuv6e ;;
    tpu7x)
      # Google: "The Cloud TPU API is not supported on TPU7x and later TPU versions." Some projects have
      # access all the same, so a file that names the software version is taken at its word.
      sizes='' runtime='' cores=2 smallest=2
      [ -n "$RUNTIME_VERSION" ] || fail 2 \
        "$SETTINGS_FILE: ACCELERATOR_TYPE is $ACCELERATOR_TYPE; Google does not offer TPU7x through queued resources" \
        "Use GKE or Compute Engine, and 'jaxrecipes run' there as on any machine. If your project has access all" \
        "the same, name the software version that Google gave you: RUNTIME_VERSION=v2-alpha-tpu7-ubuntu2404"
      ;;
    v5e) fail 2 "$SETTINGS_FILE: ACCELERATOR_TYPE is '$ACCELERATOR_TYPE'; Google writes v5e as v5litepod-$size" ;;
    *) fail 2 "$SETTINGS_FILE: ACCELERATOR_TYPE is '$ACCELERATOR_TYPE'; expected v4-N, v5litepod-N, v5p-N, v6e-N or tpu7x-N" ;;
  esac
  if [ -n "$sizes" ]; then
    case " $sizes " in
      *" $size "*) ;;
      *) fail 2 "$SETTINGS_FILE: ACCELERATOR_TYPE is '$ACCELERATOR_TYPE'; $family comes in sizes ${sizes// /, }" ;;
    esac
  elif [ "$size" -ne "$smallest" ] && { [ "$size" -lt 8 ] || [ $((size % 8)) -ne 0 ]; }; then
    fail 2 "$SETTINGS_FILE: ACCELERATOR_TYPE is '$ACCELERATOR_TYPE'; the size of $family counts TensorCores, eight a host: ${smallest}, 16, 32, ..."
  fi
  if [ -z "$RUNTIME_VERSION" ]; then
    RUNTIME_VERSION=$runtime
  else
    check_runtime "$family" "$runtime"
  fi
  CHIPS=$((size / cores))
  [ "$CHIPS" -ge 1 ] || CHIPS=1
  # v5e and v6e put up to eight chips on one VM; slices of more VMs have four chips on each.
  if { [ "$cores" -eq 1 ] && [ "$CHIPS" -le 8 ]; } || [ "$CHIPS" -le 4 ]; then
    HOSTS=1
  else
    HOSTS=$((CHIPS / 4))
  fi
}

# A version that Google makes for another family boots but its driver finds no TPU; say so at once.
check_runtime() { # family, the version for it
  local other=
  case $RUNTIME_VERSION in
    v2-alpha-tpuv5-lite*) other=v5litepod ;;
    v2-alpha-tpuv5*) other=v5p ;;
    v2-alpha-tpuv6e*) other=v6e ;;
    v2-alpha-tpuv4*) other=v4 ;;
    v2-alpha-tpu7*) other=tpu7x ;;
  esac
  if [ -n "$other" ] && [ "$other" != "$1" ]; then
    fail 2 "$SETTINGS_FILE: RUNTIME_VERSION is $RUNTIME_VERSION, which is for $other, and ACCELERATOR_TYPE is $ACCELERATOR_TYPE" \
      "Expected ${2:-a version for $1}${2:+; leave RUNTIME_VERSION empty to get it}."
  fi
}

check_paths() {
  local path paths
  read -r -a paths <<<"$CONFIG $DATA"
  for path in "${paths[@]}"; do
    case "/$path/" in
      */../*) fail 2 "$SETTINGS_FILE: CONFIG and DATA: '$path' has '..' in it; expected a path below $CHECKOUT" ;;
    esac
    [ -e "$CHECKOUT/$path" ] || fail 2 "$SETTINGS_FILE: CONFIG and DATA: no such file: $CHECKOUT/$path" \
      "These paths are written from the root of the checkout."
  done
  case $OUTPUT in
    /mnt/shared/*) [ -n "$SHARED" ] || fail 2 \
      "$SETTINGS_FILE: OUTPUT is $OUTPUT, but nothing is mounted at /mnt/shared" \
      "Name a bucket or an NFS share: SHARED=gs://my-bucket or SHARED=10.0.0.2:/share" ;;
  esac
  case "/$OUTPUT/" in
    */../*) fail 2 "$SETTINGS_FILE: OUTPUT is '$OUTPUT'; expected a path without '..'" ;;
  esac
  case " $OVERRIDES" in
    *' output='*) fail 2 "$SETTINGS_FILE: OVERRIDES has output=; use the key OUTPUT, which sync.sh reads too" ;;
  esac
  [ -z "$HF_TOKEN_FILE" ] || [ -s "$HF_TOKEN_FILE" ] ||
    fail 2 "$SETTINGS_FILE: HF_TOKEN_FILE: no such file, or empty: $HF_TOKEN_FILE"
}

# Several hosts write into one run folder, and a preempted VM takes its disk with it.
require_shared_output() { # why
  case $OUTPUT in
    /mnt/shared/*) return 0 ;;
  esac
  # shellcheck disable=SC2153 # A key of the table.
  fail 2 "$SETTINGS_FILE: OUTPUT is '${OUTPUT:-not set}'; expected a folder below /mnt/shared: $1" \
    "For instance SHARED=gs://my-bucket and OUTPUT=/mnt/shared/$NAME; docs/tpu.md says how to make a bucket."
}
