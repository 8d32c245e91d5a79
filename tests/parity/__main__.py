"""Runs parity cases: `python -m tests.parity PATH...`; exit status 1 if any fails.

Every folder below PATH that holds a case.json is run and gives one line: name, largest absolute
and relative error over its arrays, tolerance of the worst one, and pass or FAIL.
"""

import argparse
import sys
from pathlib import Path

from tests.parity.case import Case, Check
from tests.parity.kinds import UnknownKind, checks


def worst(results: list[Check]) -> Check:
    """Returns the check that speaks for a case: a failed one, else the largest error."""
    return max(results, key=lambda check: (not check.passed, check.rel_error))


def run(path: Path, verbose: bool) -> bool | None:
    """Runs one case and prints its line; returns whether it passed, or None if not run."""
    name = path.name
    try:
        case = Case.load(path)
        results = checks(case)
    except UnknownKind as error:
        print(f"{name:40s} not run: {error}", flush=True)
        return None
    except Exception as error:  # a broken case must not hide the others
        print(f"{name:40s} FAIL: {type(error).__name__}: {error}", flush=True)
        return False
    if not results:
        print(f"{name:40s} FAIL: nothing was compared", flush=True)
        return False
    speaker, passed = worst(results), all(check.passed for check in results)
    largest = max(check.abs_error for check in results)
    print(
        f"{name:40s} abs {largest:.2e}  rel {speaker.rel_error:.2e}  "
        f"tolerance {speaker.tolerance} ({speaker.name} of {len(results)})  "
        f"{'pass' if passed else 'FAIL'}",
        flush=True,
    )
    for check in results if verbose else [check for check in results if not check.passed]:
        print(
            f"    {check.name}: abs {check.abs_error:.2e} rel {check.rel_error:.2e} "
            f"tolerance {check.tolerance} {'pass' if check.passed else 'FAIL'}",
            flush=True,
        )
    return passed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--verbose", action="store_true", help="one line for every array too")
    args = parser.parse_args(argv)
    folders = sorted({found.parent for path in args.paths for found in path.rglob("case.json")})
    if not folders:
        print(f"no case.json below {', '.join(map(str, args.paths))}", file=sys.stderr)
        return 1
    results = [run(folder, args.verbose) for folder in folders]
    print(
        f"{results.count(True)} passed, {results.count(False)} failed, "
        f"{results.count(None)} not run"
    )
    return 0 if results.count(False) == 0 and results.count(True) > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
