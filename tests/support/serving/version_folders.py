"""Versions of a few small files."""

from keras_mgda.serving import versions

FILES = ("saved_model.pb", "variables/variables.index", "assets.extra/warmup")


def write(folder, number_of_bytes=10):
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * number_of_bytes)


def publish(directory, version=None):
    with versions.staging(directory) as staged:
        write(staged)
        return versions.publish(staged, directory, version)


def is_whole(folder):
    return all((folder / name).exists() for name in FILES)


def hidden(directory):
    return [child for child in directory.iterdir() if child.name[0] == "."]
