"""Run a suite and keep its figures, `python -m benchmarks unet`, or write the page of them all, `... report`."""

import argparse
from pathlib import Path

from benchmarks.page import PAGE, SUITES, bars_of, page, result_of, suite
from benchmarks.record import Record, machine


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "name", choices=[*SUITES, "gpu", "report"], help="the suite; 'report' writes docs/benchmarks.md"
    )
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of the suite; NAME --help tells of them")
    asked = parser.parse_args()
    if asked.name == "report":
        PAGE.write_text(page())
    elif asked.name == "gpu":  # it has more than one file, and other machines
        from benchmarks.gpu.runner import main as measure_gpu

        measure_gpu(asked.options)
    else:
        measure(asked.name, asked.options)


def measure(name: str, options: list[str]) -> None:
    """Run a suite and print its tables and what is wanted of it."""
    module = suite(name)
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, default=None, help="torch's own number when not given")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds; the median counts")
    parser.add_argument("--output", type=Path, default=result_of(name), help="the file of results")
    if hasattr(module, "add_arguments"):
        module.add_arguments(parser)
    arguments = parser.parse_args(options)
    settings = {key: value for key, value in vars(arguments).items() if key != "output"}
    record = Record(name, settings, machine(arguments.threads), arguments.output)
    try:
        module.run(arguments, record)
    except ValueError as error:
        parser.error(str(error))
    print(module.report(record.rows))
    for bar in bars_of(name, record.rows):
        print(f"{'met' if bar.is_met else 'missed'}: {bar.what}: {bar.measured:.3g}, wanted {bar.wanted}")


if __name__ == "__main__":
    main()
