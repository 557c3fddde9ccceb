#!/usr/bin/env bash
# Serves a published folder with the real TensorFlow Serving and asks every
# signature over REST.
#
#     tests/support/serving/docker.sh saved_models/mtl
#
# NOT RUN in CI, nor by `make test`: it needs a docker daemon and the image.
# What is run there instead is described in docs/serving.md.
set -euo pipefail

folder=$(realpath "$1")
python -m keras_mgda.serving "$folder"
name=$(basename "$folder")
model="http://localhost:8501/v1/models/$name"

container=$(docker run --detach --rm -p 8501:8501 \
    --mount "type=bind,source=$folder,target=/models/$name" \
    -e "MODEL_NAME=$name" tensorflow/serving:2.20.0)
trap 'docker stop "$container" >/dev/null' EXIT

until curl --silent "$model" | grep --quiet AVAILABLE; do
    docker inspect "$container" >/dev/null # Fails once it has ended.
    sleep 1
done

failed=0
while read -r body; do
    echo "$body" | cut -c 1-200
    answer=$(curl --silent --data "$body" "$model:predict")
    echo "$answer" | cut -c 1-200
    grep --quiet '"outputs"' <<<"$answer" || failed=1
done < <(python -m tests.support.serving.request_bodies "$folder")
exit "$failed"
