"""Shows what was published, and whether TensorFlow Serving can serve it.

    python -m keras_mgda.serving saved_models/mtl

The folder is a folder of versions, of which the newest is shown, or one
version. The exit status is 1 if something is wrong with it.
"""

import argparse
import sys
from pathlib import Path

from keras_mgda.serving import artifact, checks, versions, warmup


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m keras_mgda.serving",
        description="Show a published model and check it.",
    )
    parser.add_argument("directory", type=Path, help="versions, or one version")
    directory = parser.parse_args(arguments).directory
    found = versions.list_versions(directory)
    if found:
        print(f"{directory}: versions {', '.join(map(str, found))}")
        directory = found[max(found)]
    try:
        shown = artifact.read(directory)
    except ValueError as error:
        print(error)
        return 1
    print(shown)
    problems = checks.problems(shown)
    for problem in problems:
        print(f"- {problem}")
    if problems:
        return 1
    _print_uncompared(shown)
    print("It passes the checks.")
    return 0


def _print_uncompared(shown: artifact.Artifact) -> None:
    requests = warmup.read(shown.path / warmup.PATH)
    compared = {request.signature for request in requests if request.answer}
    uncompared = [name for name in shown.signatures if name not in compared]
    if uncompared:
        print(
            "Not compared with the model's answers, which are stored up to "
            f"{warmup.LARGEST_ANSWER // 2**10} KiB: {', '.join(uncompared)}."
        )


if __name__ == "__main__":
    sys.exit(main())
