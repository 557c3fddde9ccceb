"""Which method should I use? Nine methods on real data, alike.

    python -m benchmarks.study run --data FOLDER
    python -m benchmarks.study scales
    python -m benchmarks.study report

The first appends a line to `benchmarks/results/study/NAME.jsonl` for each
training that ended, and goes on from there; so does the second, which asks what
the methods make of a loss in another unit. The third draws the figure, and says
what the ranks tell; `python -m benchmarks.tables` fills the tables.
"""

import argparse
from pathlib import Path

from benchmarks.harness import FIGURES, RESULTS

STUDY = RESULTS / "study"


def main(command, data, only, results, figures):
    if command == "run":
        from benchmarks.study.problems import PROBLEMS
        from benchmarks.study.run import run

        if data is None:
            raise SystemExit("`run` needs the folder of the data, as `--data`.")
        for name in only or PROBLEMS:
            print(f"{name}\n{run(name, data, results)}\n", flush=True)
    elif command == "scales":
        from benchmarks.study import scales

        scales.run(results)
    else:
        from benchmarks.study import report

        report.draw(results, figures / "study.png")
        print(report.verdict(results))
        for problem in report.under_way(results):
            print(f"Left out, for its trainings have not ended: {problem}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("command", choices=("run", "scales", "report"))
    add("--data", type=Path, help="the folder of the data sets")
    add("--only", nargs="+", help="the names of problems; all of them if none")
    add("--results", type=Path, default=STUDY, help="a folder")
    add("--figures", type=Path, default=FIGURES, help="a folder")
    main(**vars(parser.parse_args()))
