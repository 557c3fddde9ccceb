"""examples/serve.py, without a server and with the stand-in for one."""

import contextlib
import http.server
import io
import os
import re
import shlex
import sys
import threading

import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from examples import serve, two_digits
from keras_mgda import serving
from tests.support.processes import free_ports
from tests.support.serving.running import model_server

pytestmark = pytest.mark.slow

OUTPUTS = {
    "serving_default": {"left", "right"},
    "predict_left": {"left"},
    "predict_right": {"right"},
}
STEPS = [("stable", 1), ("canary", 2), ("stable", 2), ("stable", 1)]


def walk(folder, server):
    """Runs the example; returns what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        serve.main([f"--server={server}", f"--saved-models={folder}"])
    return printed.getvalue()


def confirmed(printed):
    """What it asked and found: `[(way, label, version)]`."""
    lines = re.findall(
        r"(?m)^  (.+): (\w+) is version (\d+); 3 signatures", printed
    )
    return [(way, label, int(version)) for way, label, version in lines]


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A first run, for which there is no server: its folder and its words."""
    folder = tmp_path_factory.mktemp("saved_models")
    grpc, rest = free_ports(2)
    address = f"127.0.0.1:{grpc}/{rest}"
    return folder, address, walk(folder, address)


@pytest.fixture(scope="module")
def server(walked):
    config = walked[0] / "models.config"
    with model_server("--model-config-file", config) as ports:
        yield ports


@pytest.fixture(scope="module")
def images():
    return two_digits.load("digits")["test"][0][:5]


def test_two_versions_are_published_that_a_server_can_serve(walked):
    folder, *_ = walked
    versions = serving.list_versions(folder / "two_digits")
    assert list(versions) == [1, 2]
    for path in versions.values():
        artifact = serving.read(path)
        assert {n: set(s.outputs) for n, s in artifact.signatures.items()} == (
            OUTPUTS
        )
        assert serving.problems(artifact) == []
        assert (path / "assets.extra" / "tf_serving_warmup_requests").exists()


def test_the_second_version_is_the_better_one(walked):
    found = re.findall(r"'left': ([\d.]+), 'right': ([\d.]+)", walked[2])
    first, second = np.array(found, "float64")
    assert (first > 50).all()
    assert (second > first).all()


def test_without_a_server_it_says_so_and_asks_tensorflow(walked):
    _, address, printed = walked
    assert f"No server answered at {address}: " in printed
    assert confirmed(printed) == [("TensorFlow alone", *step) for step in STEPS]


def test_the_docker_command_serves_the_labelled_versions(walked):
    folder, _, printed = walked
    (line,) = re.findall(r"(?m)^docker run .*$", printed)
    words = shlex.split(line)
    assert f"type=bind,source={folder},target=/models" in words
    assert "--model_config_file=/models/models.config" in words
    assert "--allow_version_labels_for_unavailable_models=true" in words
    assert any("--model_config_file_poll_wait_seconds=" in w for w in words)


def test_at_the_end_the_first_version_is_stable_and_both_are_served(walked):
    (model,) = text_format.Parse(
        (walked[0] / "models.config").read_text(),
        model_server_config_pb2.ModelServerConfig(),
    ).model_config_list.config
    assert (model.name, model.base_path) == ("two_digits", "/models/two_digits")
    assert model.version_labels == {"stable": 1, "canary": 2}
    assert list(model.model_version_policy.specific.versions) == [1, 2]


def test_a_server_is_asked_over_grpc_and_rest(walked, server):
    folder, *_ = walked
    before = sorted(os.listdir(folder / "two_digits"))
    printed = walk(folder, f"127.0.0.1:{server['grpc']}/{server['rest']}")
    assert confirmed(printed) == [
        (way, *step) for step in STEPS for way in ("gRPC", "REST")
    ]
    assert "No server" not in printed
    # It loaded what the first run had trained.
    assert sorted(os.listdir(folder / "two_digits")) == before


@pytest.mark.parametrize("way", ["gRPC", "REST", "files"])
def test_each_way_to_ask_answers_as_its_version(way, walked, server, images):
    folder, *_ = walked
    config = folder / "models.config"
    ask = {
        "gRPC": lambda: serve.over_grpc(f"127.0.0.1:{server['grpc']}"),
        "REST": lambda: serve.over_rest(f"127.0.0.1:{server['rest']}"),
        "files": lambda: serve.from_files(config),
    }[way]()
    for label, version in {"stable": 1, "canary": 2}.items():
        path = folder / "two_digits" / str(version)
        expected = serve.predict(path, images)
        for signature, outputs in OUTPUTS.items():
            answer = ask(label, signature, images)
            assert set(answer) == outputs
            for task in outputs:
                assert answer[task].shape == (5, 10)
                np.testing.assert_allclose(
                    answer[task], expected[task], atol=1e-6
                )


def test_digits_are_drawn_with_what_was_read(walked):
    folder, _, printed = walked
    x, y = two_digits.load("digits", copies=4)["test"]
    read = serve.predict(folder / "two_digits" / "2", x[:6])
    captions = [
        f"left {left.argmax()} ({y['left'][n]})  "
        f"right {right.argmax()} ({y['right'][n]})"
        for n, (left, right) in enumerate(
            zip(read["left"], read["right"], strict=True)
        )
    ]
    _, _, drawn = printed.partition("in parentheses the truth:\n")
    assert re.findall(r"left \d \(\d\)  right \d \(\d\)", drawn) == captions
    assert max(map(len, drawn.splitlines())) <= 80


class Anything(http.server.BaseHTTPRequestHandler):
    """Another program that happens to have the port."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Hello</html>")

    def log_message(self, *_):
        pass


def test_another_program_at_the_port_is_no_server(walked, images, capsys):
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Anything)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    server = ("127.0.0.1", "8500", str(web.server_port))
    ways = serve.ways_to_ask(server, walked[0] / "models.config", images)
    web.shutdown()
    web.server_close()
    assert list(ways) == ["TensorFlow alone"]
    assert f"answered at 127.0.0.1:8500/{web.server_port}: " in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("wrong", [1.0, np.nan])
def test_a_server_that_answers_otherwise_is_not_confirmed(wrong, monkeypatch):
    monkeypatch.setattr(serve, "PATIENCE", 2)
    expected = {task: np.zeros((1, 10)) for task in serve.TASKS}
    answer = {**expected, "right": np.full((1, 10), wrong)}
    ways = {"gRPC": lambda *_: answer}
    with pytest.raises(SystemExit, match=r"stable must answer as version 2"):
        serve.confirm(ways, "stable", 2, expected, None)


def test_a_server_may_take_a_moment_to_move_a_label(monkeypatch, capsys):
    expected = {task: np.zeros((1, 10)) for task in serve.TASKS}
    late = iter([1.0] * len(serve.SIGNATURES))
    ways = {"gRPC": lambda *_: {"left": np.full((1, 10), next(late, 0.0))}}
    serve.confirm(ways, "stable", 2, expected, None)
    assert confirmed(capsys.readouterr().out) == [("gRPC", "stable", 2)]


def test_what_grpc_needs_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(
        SystemExit, match=r"pip install --no-deps tensorflow-serving-api"
    ):
        serve.over_grpc("127.0.0.1:8500")


def test_an_address_without_both_ports_is_refused(capsys):
    with pytest.raises(SystemExit):
        serve.main(["--server=localhost:8500"])
    assert "HOST:PORT/PORT. Received: localhost:8500" in capsys.readouterr().err
