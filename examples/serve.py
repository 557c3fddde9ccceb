"""Publishes two versions of a model, asks both, and rolls back.

    python -m examples.serve [--server localhost:8500/8501]

1. A model of two overlapping digits is trained and published as version 1,
   trained on, and published as version 2. The next run loads both.
2. `models.config` names the first `stable`, the second `canary`.
3. Both are asked, over gRPC and REST, and compared with `model.predict`.
4. `stable` moves to the second version, and is rolled back to the first.

The server is TensorFlow Serving, started by the docker command that is printed.
While none answers, TensorFlow alone does. This was run with the stand-in server
of the tests, not with TensorFlow Serving itself: see docs/serving.md.
"""

import argparse
import functools
import json
import re
import shlex
import sys
import time
import urllib.request
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_mgda
from examples import multi_mnist, two_digits
from keras_mgda import serving

FOLDER = Path(__file__).parents[1] / "saved_models"
NAME = "two_digits"  # what clients call the model: its folder of versions
TASKS = multi_mnist.TASKS
SIGNATURES = ("serving_default", "predict_left", "predict_right")
PATIENCE = 30  # seconds, for the server to read models.config again
SHADES = " .:-=+*#%@"


def publish_two(folder, data):
    """Publishes a model, trains it on, and publishes it again."""
    keras.utils.set_random_seed(0)
    model = multi_mnist.build(
        multi_mnist.METHODS["MGDA-UB"], learning_rate=0.02
    )
    for epochs in (2, 4):
        model.fit(*data["train"], batch_size=64, epochs=epochs, verbose=0)
        published = keras_mgda.export_saved_model(
            model,
            folder,
            postprocess=dict.fromkeys(TASKS, tf.nn.softmax),
            warmup=data["validation"][0][:3],
        )
        model.save(f"{published.path}.keras")  # servers pass over it
        accuracies = multi_mnist.accuracies(model, data["test"])
        print(f"{published}\n  test accuracy: {accuracies}")


def newest_two(folder):
    """`{version: path}`, of versions whose Keras model lies beside them."""
    found = serving.list_versions(folder).items()
    return dict([(n, p) for n, p in found if Path(f"{p}.keras").exists()][-2:])


def predict(path, images):
    """What the Keras model answers: `{task: probabilities [b, 10]}`."""
    logits = keras.models.load_model(f"{path}.keras").predict(images, verbose=0)
    return {task: tf.nn.softmax(logits[task]).numpy() for task in TASKS}


def write_config(config, name, versions, labels):
    """Names the versions of a model to serve, and gives them labels.

    The server moves a label only to a version that it has loaded. So keep the
    old one among `versions`, and list a new one before moving a label to it.
    It reads the file at any time, so that appears whole.
    """
    numbers = " ".join(f"versions: {version}" for version in versions)
    named = "\n".join(
        f'    version_labels {{ key: "{label}" value: {version} }}'
        for label, version in labels.items()
    )
    draft = config.with_suffix(".draft")
    draft.write_text(
        f"""model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
    model_version_policy {{ specific {{ {numbers} }} }}
{named}
  }}
}}
"""
    )
    draft.replace(config)
    print(f"\n{config}: {labels}")


def docker_command(config):
    """Serves what the file names, and takes over its changes.

    The server reads the labels before it has loaded any version.
    """
    return (
        "docker run --rm -p 8500:8500 -p 8501:8501 --mount "
        + shlex.quote(f"type=bind,source={config.parent},target=/models")
        + " -t tensorflow/serving:2.20.0"
        f" --model_config_file=/models/{config.name}"
        " --model_config_file_poll_wait_seconds=5"
        " --allow_version_labels_for_unavailable_models=true"
    )


# Ways to ask: each a function from a label, a signature and images to
# `{task: probabilities [b, 10]}`.


def over_grpc(server):
    try:
        import grpc
        from tensorflow_serving.apis import predict_pb2
        from tensorflow_serving.apis import prediction_service_pb2_grpc as stubs
    except ImportError as error:
        sys.exit(
            f"{error}. To ask over gRPC: pip install grpcio; "
            "pip install --no-deps tensorflow-serving-api"
        )
    stub = stubs.PredictionServiceStub(grpc.insecure_channel(server))

    def ask(label, signature, images):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = NAME
        request.model_spec.version_label = label
        request.model_spec.signature_name = signature
        request.inputs["image"].CopyFrom(tf.make_tensor_proto(images))
        outputs = stub.Predict(request, timeout=10).outputs
        return {task: tf.make_ndarray(outputs[task]) for task in outputs}

    return ask


def over_rest(server):
    def ask(label, signature, images):
        url = f"http://{server}/v1/models/{NAME}/labels/{label}:predict"
        inputs = {"image": images.tolist()}
        body = json.dumps({"signature_name": signature, "inputs": inputs})
        with urllib.request.urlopen(url, body.encode(), timeout=10) as response:
            outputs = json.load(response)["outputs"]
        if signature != "serving_default":  # one output comes without its name
            outputs = {signature.removeprefix("predict_"): outputs}
        return {task: np.array(rows) for task, rows in outputs.items()}

    return ask


def from_files(config):
    """Without a server. To load and to ask, TensorFlow is enough."""
    load = functools.cache(tf.saved_model.load)

    def ask(label, signature, images):
        labels = re.findall(r'key: "(.+)" value: (\d+)', config.read_text())
        loaded = load(str(config.parent / NAME / dict(labels)[label]))
        outputs = loaded.signatures[signature](image=tf.constant(images))
        return {task: tensor.numpy() for task, tensor in outputs.items()}

    return ask


def ways_to_ask(server, config, images):
    host, grpc_port, rest_port = server
    rest = over_rest(f"{host}:{rest_port}")
    try:
        for label in ("stable", "canary"):
            rest(label, "serving_default", images)
    except Exception as error:  # nothing is there, or something else
        print(
            f"No server answered at {host}:{grpc_port}/{rest_port}: {error}\n"
            "Start one with the command above and run this again.\n"
            "In its place TensorFlow alone answers:"
        )
        return {"TensorFlow alone": from_files(config)}
    return {"gRPC": over_grpc(f"{host}:{grpc_port}"), "REST": rest}


def confirm(ways, label, version, expected, images):
    """Asks all signatures, until they answer as this version of the model."""
    for way, ask in ways.items():
        for _ in range(PATIENCE):
            answers = [ask(label, name, images) for name in SIGNATURES]
            gaps = [abs(a[t] - expected[t]) for a in answers for t in a]
            worst = np.max(gaps)
            if worst < 1e-5:
                break
            time.sleep(1)
        else:
            sys.exit(
                f"Over {way}, {label} must answer as version {version}. "
                f"Received: a difference of {worst:.1g} to model.predict. "
                "Was the server started with the command above?"
            )
        print(
            f"  {way}: {label} is version {version}; {len(SIGNATURES)} "
            f"signatures, {worst:.1g} away from model.predict"
        )


def draw(image):
    """Twelve lines of 24 letters; a letter is twice as high as wide."""
    rows = image[2:26, 2:26, 0].reshape(12, 2, 24).mean(axis=1)
    levels = np.rint(rows * (len(SHADES) - 1)).astype(int)
    return ["".join(SHADES[level] for level in row) for row in levels]


def show(images, truth, answer):
    """Three side by side; what was read, and in parentheses the truth."""
    captions = [
        "  ".join(f"{t} {answer[t][n].argmax()} ({truth[t][n]})" for t in TASKS)
        for n in range(len(images))
    ]
    for first in range(0, len(images), 3):
        three = slice(first, first + 3)
        for line in zip(*map(draw, images[three]), strict=True):
            print("  ".join(line).rstrip())
        print("  ".join(f"{caption:24}" for caption in captions[three]), "\n")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", default="localhost:8500/8501")
    parser.add_argument("--saved-models", type=Path, default=FOLDER)
    args = parser.parse_args(argv)
    server = re.fullmatch(r"(.+):(\d+)/(\d+)", args.server)
    if not server:
        parser.error(
            f"--server must be HOST:PORT/PORT. Received: {args.server}"
        )
    folder = args.saved_models.resolve() / NAME
    config = folder.parent / "models.config"

    # 1. Two versions
    data = two_digits.load("digits", copies=4)
    if len(newest_two(folder)) < 2:
        publish_two(folder, data)
    paths = newest_two(folder)
    first, second = versions = tuple(paths)

    # 2. Their labels, and the server
    write_config(config, NAME, versions, {"stable": first, "canary": second})
    print(docker_command(config), "\n")

    # 3. The same questions to both, and to the Keras models
    images, truth = data["test"][0][:6], data["test"][1]
    expected = {n: predict(path, images) for n, path in paths.items()}
    ways = ways_to_ask(server.groups(), config, images)
    confirm(ways, "stable", first, expected[first], images)
    confirm(ways, "canary", second, expected[second], images)

    # 4. What the canary answered looks good, so all clients get it; it was
    # not good, so they get the first one again, which is still loaded.
    write_config(config, NAME, versions, {"stable": second, "canary": second})
    confirm(ways, "stable", second, expected[second], images)
    write_config(config, NAME, versions, {"stable": first, "canary": second})
    confirm(ways, "stable", first, expected[first], images)

    print(f"\nWhat version {second} reads, and in parentheses the truth:\n")
    *_, ask = ways.values()
    show(images, truth, ask("canary", "serving_default", images))


if __name__ == "__main__":
    main()
