"""Shows what was published, and whether TensorFlow Serving can serve it.

    python -m keras_mgda.serving saved_models/mtl

The folder is a folder of versions, of which the newest is shown, or one
version. The exit status is 1 if something is wrong with it.
"""

import argparse
import sys
from pathlib import Path

from keras_mgda.serving import artifact, checks, config, versions


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
    print("It passes the checks. To serve it and to ask it:")
    print(config.docker_command(shown))
    for signature in shown.signatures:
        print(config.curl_command(shown, signature))
    return 0


if __name__ == "__main__":
    sys.exit(main())
