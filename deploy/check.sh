#!/usr/bin/env bash
# Shows without a Docker engine that deploy/Dockerfile and docker-compose.yml work: builds the image of the `cpu` target
# with buildah and runs the compose file's own commands and health checks in it, as the image's user.
#
#   deploy/check.sh            as root; on two cores twelve minutes and 23 GB under $WORK, removed at the end
#
# Needs: buildah, a PostgreSQL server (/usr/lib/postgresql), .venv (or PYTHON with what is in it); mmdebstrap, unless
# BASE names an image. Uses hadolint, and docker compose or podman-compose (with podman), where they are on PATH.
# The ports 5432, 6379, 8000, 8001 and 8265 must be free: the processes share this machine's network. The compose file's
# variables are taken from the environment, as compose takes them; only WMSS_CHAT_IDLE_S is set here.
#
# Shows: Dockerfile and compose file are clean and parse; the image builds; vLLM's kernels load in it; `secrets` makes
# token and password, once; the server takes that password (and no other) through PGPASSFILE; API, Ray head and worker
# run as user 10001; /healthz is 200 at once, /readyz 503 without Ray and 200 with it; health checks fail without the
# head and pass with it; the dashboard asks for the token; a dry run answers; a WMSS job given to the API runs to its
# end on the worker; its result and then its base answer chat requests over Serve's proxy on the head, which listens on
# all addresses; engines are deployed and deleted by Ray jobs, from an API that has not loaded Ray; an idle engine
# leaves.
# Does not show: Docker's volumes, networks, memory limits and start order; the `cuda` target; the official base image.
set -euo pipefail
cd "$(dirname "$0")/.."

WORK=${WORK:-$(mktemp -d /var/tmp/wmss-check-XXXX)}
PYTHON=${PYTHON:-.venv/bin/python}
BASE=${BASE:-}
# A builder's own package sources: pip's configuration, and folders (separated by colons) that it names.
PIP_CONF=${PIP_CONF:-}
BUILD_FOLDERS=${BUILD_FOLDERS:-}
# Layers are kept here between runs, if it is given.
STORAGE=${STORAGE:-}

# Short, for the sake of seeing it pass.
export WMSS_CHAT_IDLE_S=20

buildah=(buildah --root "${STORAGE:-$WORK/storage}" --runroot "$WORK/runroot")
export STORAGE_DRIVER=${STORAGE_DRIVER:-vfs}
started=()
containers=()

finish() {
  status=$?
  [ $status = 0 ] || tail -n 30 "$WORK"/*.log >&2 || true
  for pid in "${started[@]}"; do kill -- "-$pid" 2>/dev/null || true; done
  sleep 5
  # What a killed Ray left behind; no process had this number when we began.
  ps -o pid= -u 10001 | xargs -r kill -9 || true
  [ ${#containers[@]} = 0 ] || "${buildah[@]}" rm "${containers[@]}" >/dev/null || true
  [ -n "$STORAGE" ] || "${buildah[@]}" rmi --all --force >/dev/null || true
  rm -rf "$WORK"
  [ $status = 0 ] && echo "all shown" || echo "FAILED (status $status)" >&2
  exit $status
}
trap finish EXIT

say() { printf '== %s\n' "$*"; }
die() { echo "$*" >&2; exit 1; }

# Words of a list in the compose file, variables filled in, each ended by NUL.
compose_words() {
  "$PYTHON" - "$@" <<'PY'
import os, re, sys, yaml
value = yaml.safe_load(open("docker-compose.yml"))["services"][sys.argv[1]]
for key in sys.argv[2:]:
    value = value[key]
if isinstance(value, dict):
    value = [f"{name}={text}" for name, text in value.items()]
for word in value[1:] if value[0] == "CMD" else value:
    print(re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: os.environ.get(match[1]) or match[2], word), end="\0")
PY
}

# Run a command of a service in a container, in the environment that the compose file gives the service.
run() { # service, container, command...
  local service=$1 container=$2 word options=()
  shift 2
  if [ "$service" != secrets ]; then
    while IFS= read -r -d '' word; do options+=(--env "$word"); done < <(compose_words "$service" environment)
  fi
  "${buildah[@]}" run --isolation chroot --user 10001:10001 "${options[@]}" "$container" -- "$@"
}

start() { # service, container, command...
  set -m # a process group of its own, ended as one
  run "$@" >"$WORK/$1.log" 2>&1 &
  started+=($!)
  set +m
}

health() { # service, container
  local words=()
  mapfile -d '' words < <(compose_words "$1" healthcheck test)
  run "$1" "$2" "${words[@]}" >"$WORK/health.log" 2>&1
}

within() { # seconds, what, command...
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ $SECONDS -lt $end ] || die "$what: not in time"
    sleep 1
  done
  say "$what"
}

answers() { # path, expected status, expected text
  local status
  status=$(curl --noproxy '*' -s -m 15 -o "$WORK/answer" -w '%{http_code}' "http://127.0.0.1:8000$1" || true)
  [ "$status" = "$2" ] && grep -q "$3" "$WORK/answer"
}

say "Dockerfile and compose file"
if command -v hadolint >/dev/null; then hadolint deploy/Dockerfile; else echo "NOT SHOWN: no hadolint"; fi
compose=(docker compose)
"${compose[@]}" version >/dev/null 2>&1 || compose=(podman-compose)
if command -v "${compose[0]}" >/dev/null; then
  "${compose[@]}" config >/dev/null 2>"$WORK/compose.log"
  "${compose[@]}" -f docker-compose.yml -f deploy/docker-compose.cuda.yml config >/dev/null 2>>"$WORK/compose.log"
else
  echo "NOT SHOWN: neither docker compose nor podman-compose"
fi

[ -z "$(ps -o pid= -u 10001)" ] || die "user 10001, who is the image's, has processes on this machine"
for port in 5432 6379 8000 8001 8265; do
  (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null && die "port $port is in use"
done

if [ -z "$BASE" ]; then
  say "base image: Debian bookworm, whose Python is 3.11"
  mmdebstrap --mode=root --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$WORK/base.tar" \
    >"$WORK/base.log" 2>&1
  printf 'FROM scratch\nADD base.tar /\n' >"$WORK/base.Dockerfile"
  BASE=localhost/wmss-base
  "${buildah[@]}" bud --isolation chroot -t "$BASE" -f "$WORK/base.Dockerfile" "$WORK" >>"$WORK/base.log" 2>&1
  rm "$WORK/base.tar"
fi

say "image: target cpu"
options=()
[ -z "$PIP_CONF" ] || options+=(--secret "id=pip_conf,src=$PIP_CONF")
IFS=: read -ra folders <<<"$BUILD_FOLDERS"
for folder in "${folders[@]}"; do options+=(--volume "$folder:$folder:ro"); done
"${buildah[@]}" bud --isolation chroot --target cpu --build-arg "BASE=$BASE" "${options[@]}" -t wmss:cpu \
  --layers="$([ -n "$STORAGE" ] && echo true || echo false)" -f deploy/Dockerfile . >"$WORK/build.log" 2>&1

shared=$WORK/shared
chmod 0711 "$WORK"
install -d -m 0755 "$shared" "$shared/models"
install -d -o 10001 -g 10001 -m 0750 "$shared/home" "$shared/secrets"
install -d -o 10001 -g 10001 -m 0755 "$shared/postgres-secret"
"$PYTHON" - "$shared" 2>"$WORK/checkpoint.log" <<'PY'
import sys
from pathlib import Path
from tests.checkpoints import make_checkpoint
from wmss.tasks.arithmetic import make_problems, write_jsonl
make_checkpoint(Path(sys.argv[1]) / "models" / "tiny", "qwen3", seed=1)
write_jsonl(make_problems(64, seed=1), Path(sys.argv[1]) / "train.jsonl")
PY
chmod -R a+rX "$shared/models"

# A container for API and head, one for the worker: what they share are the volumes, as in the compose file.
new_container() {
  "${buildah[@]}" from --add-host ray-head:127.0.0.1 --add-host postgres:127.0.0.1 \
    --volume "$shared/home:/var/lib/wmss" --volume "$shared/secrets:/var/lib/wmss-secrets" \
    --volume "$shared/postgres-secret:/var/lib/wmss-postgres-secret" --volume "$shared/models:/models:ro" wmss:cpu
}
node=$(new_container)
containers+=("$node")
worker=$(new_container)
containers+=("$worker")

say "vLLM's kernels and the service load in it"
run secrets "$node" python3 -c "import vllm._C, services.driver"
mapfile -d '' words < <(compose_words secrets command)
run secrets "$node" "${words[@]}"
before=$(sha256sum "$shared"/*secret*/*)
run secrets "$node" "${words[@]}"
[ "$before" = "$(sha256sum "$shared"/*secret*/*)" ] || die "secrets: made again by a second run"
[ "$(stat -c '%u %a' "$shared"/secrets/* | sort -u)" = "10001 600" ] || die "secrets: readable by others"
say "secrets are made once"

binaries=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
install -d -o postgres "$WORK/postgres"
as_postgres() { (cd "$WORK/postgres" && setpriv --reuid postgres --regid postgres --clear-groups "$@"); }
as_postgres "$binaries/initdb" -D data -U wmss -A scram-sha-256 --pwfile "$shared/postgres-secret/password" \
  >"$WORK/initdb.log"
set -m
as_postgres "$binaries/postgres" -D data -k "$WORK/postgres" -c listen_addresses=127.0.0.1 >"$WORK/postgres.log" 2>&1 &
started+=($!)
set +m
psql() { # address, statement
  run api "$node" python3 -c "import psycopg, sys
psycopg.connect(sys.argv[1], autocommit=True).execute(sys.argv[2])" "$@" >"$WORK/psql.log" 2>&1
}
within 60 "PostgreSQL takes the password of PGPASSFILE" psql postgresql://wmss@postgres/postgres "CREATE DATABASE wmss"
! psql postgresql://wmss:other@postgres/postgres "SELECT 1" || die "PostgreSQL takes any password"
say "and no other"

start api "$node" uvicorn services.api.app:create_app --factory --host 127.0.0.1 --port 8000
within 60 "API: /healthz 200" answers /healthz 200 ok
answers /readyz 503 ray_unavailable || die "API: expected /readyz 503 ray_unavailable"
say "API: /readyz 503 ray_unavailable, as there is no Ray"
! health api "$node" || die "api: healthy without Ray"
! health ray-head "$node" || die "ray-head: healthy without Ray"

mapfile -d '' words < <(compose_words ray-head command)
start ray-head "$node" "${words[@]}"
within 90 "API: /readyz 200 with the Ray head" answers /readyz 200 ready
within 60 "health check of ray-head" health ray-head "$node"
health api "$node"
say "health check of api"
[ "$(curl --noproxy '*' -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8265/api/jobs/)" = 401 ] \
  || die "the dashboard answers without the token"
say "dashboard: 401 without the token"

mapfile -d '' words < <(compose_words ray-worker command)
start ray-worker "$worker" "${words[@]}"
within 60 "health check of ray-worker" health ray-worker "$worker"

# The last answer is among the logs that a failure shows.
api() { # path, options of curl...
  curl --noproxy '*' -sS --fail-with-body "http://127.0.0.1:8000/v1$1" "${@:2}" | tee "$WORK/answer.log"
}
post() { api "$1" -H 'content-type: application/json' -d "$2"; } # path, body
field() { "$PYTHON" -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
job_for() { # model
  echo '{"model": "'"$1"'", "training_file": "'"$file"'", "method": {"type": "wmss", "wmss": {"hyperparameters":
    {"batch_size": 16, "max_steps": 3, "learning_rate": 0.01}}}}'
}
file=$(api /files -F purpose=fine-tune -F "file=@$shared/train.jsonl" | field id)
[ "$(post /fine_tuning/jobs/validate "$(job_for tiny)" | field valid)" = True ] || die "dry run: not valid"
[ "$(post /fine_tuning/jobs/validate "$(job_for nobody)" | field valid)" = False ] || die "dry run: valid without model"
[ "$(api /fine_tuning/jobs | field data)" = "[]" ] || die "dry run: made a job"
say "a dry run of the job is valid, one of a model that is not there is not"

job=$(post /fine_tuning/jobs "$(job_for tiny)" | field id)
ended() { [[ $(api "/fine_tuning/jobs/$job" | field status) =~ succeeded|failed|cancelled ]]; }
within 400 "a WMSS job has ended" ended
[ "$(api "/fine_tuning/jobs/$job" | field status)" = succeeded ] || { api "/fine_tuning/jobs/$job"; die "it failed"; }
say "it succeeded; its model: $(ls "$shared/home/models/$job" | xargs)"

# What an answer says, with the log-probability of each of its tokens: other weights have others.
ask() { # model
  post /chat/completions '{"model": "'"$1"'", "messages": [{"role": "user", "content": "3 + 4 = ?"}], "temperature": 0,
    "max_tokens": 8, "logprobs": true}' | "$PYTHON" -c 'import json, sys
answer = json.load(sys.stdin)
assert answer["model"] == sys.argv[1], answer
tokens = answer["choices"][0]["logprobs"]["content"]
assert tokens, answer
print(*(json.dumps(token["token"]) + format(token["logprob"], "6.2f") for token in tokens), sep=", ")' "$1"
}
num_processes() { ps -u 10001 -o args= | grep -cE "$1" || true; } # whose title matches
one_engine() {
  local found
  found=$(num_processes "^ray::ServeReplica:chat-")
  [ "$found" = 1 ] || die "chat: expected one engine, found $found"
}
# States of the Ray jobs in which a module was run for chat engines.
ray_jobs() { # module
  curl --noproxy '*' -sSf -H @- http://127.0.0.1:8265/api/jobs/ \
    <<<"Authorization: Bearer $(cat "$shared/secrets/ray_token")" | "$PYTHON" -c 'import json, sys
print(*(job["status"] for job in json.load(sys.stdin) if f" -m {sys.argv[1]} chat-" in job["entrypoint"]))' "$1"
}
result=$(api "/fine_tuning/jobs/$job" | field fine_tuned_model)
began=$SECONDS
said=$(ask "$result")
say "its model answers a chat request after $((SECONDS - began)) s: $said"
one_engine
began=$SECONDS
base_said=$(ask tiny)
answered=$SECONDS
say "in its place, its base after $((answered - began)) s: $base_said"
[ "$said" != "$base_said" ] || die "chat: base and result are the same"
one_engine
curl --noproxy '*' -sSf -o "$WORK/answer.log" http://127.0.0.2:8001/-/healthz
say "Serve's proxy listens on all addresses (127.0.0.2)"

has_left() { [ "$(num_processes "^(ray::ServeReplica:chat-|VLLM::)")" = 0 ]; }
within $((WMSS_CHAT_IDLE_S + 60)) "the idle engine has left" has_left
[ $((SECONDS - answered)) -ge $((WMSS_CHAT_IDLE_S - 1)) ] || die "chat: it left before WMSS_CHAT_IDLE_S"
say "$((SECONDS - answered)) s after its last answer (WMSS_CHAT_IDLE_S=$WMSS_CHAT_IDLE_S)"
deleted() { [ "$(ray_jobs services.engines.delete)" = "SUCCEEDED SUCCEEDED" ]; }
[ "$(ray_jobs services.chat.engine)" = "SUCCEEDED SUCCEEDED" ] || die "chat: $(ray_jobs services.chat.engine)"
within 60 "two engines were deployed by Ray jobs and deleted by Ray jobs" deleted
mapped=$(cat "/proc/$(pgrep -u 10001 -f 'python3 .*/uvicorn services.api')/maps")
[[ $mapped != *_raylet* ]] || die "the API has loaded Ray"
say "the API has not loaded Ray"
