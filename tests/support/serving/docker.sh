#!/usr/bin/env bash
# Serves a published folder with the real TensorFlow Serving and asks every
# signature over REST.
#
#     tests/serving/docker.sh saved_models/mtl
#
# NOT RUN in CI, nor by `make test`: it needs a docker daemon and the image.
# What is run there instead is described in docs/serving.md.
set -euo pipefail

folder=$1
shown=$(python -m keras_mgda.serving "$folder")
echo "$shown"
name=$(basename "$(realpath "$folder")")
status="http://localhost:8501/v1/models/$name"

serve=$(grep '^docker run' <<<"$shown")
container=$(eval "${serve/docker run/docker run --detach}")
trap 'docker stop "$container" >/dev/null' EXIT

for _ in $(seq 60); do
    if curl --silent "$status" | grep --quiet AVAILABLE; then
        break
    fi
    sleep 1
done
curl --silent --fail "$status"

failed=0
while read -r ask; do
    echo "$ask"
    answer=$(eval "$ask")
    echo "$answer"
    grep --quiet '"predictions"' <<<"$answer" || failed=1
done < <(grep 'curl -d' <<<"$shown")
exit "$failed"
