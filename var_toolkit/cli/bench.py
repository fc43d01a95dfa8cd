"""Measure speed, memory and quality of the rows of a table, side by side.

If a row or its quality fails, the other rows are still measured, and the exit status is 1. After Ctrl-C the report
holds what has been measured and lists the unfinished rows (exit status 130).

The table `peers` is another measurement: published code, from a checkout that --published names, beside ours.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from var_toolkit.cli.options import at_least
from var_toolkit.config_files import configs
from var_toolkit.files import check_writable
from var_toolkit.user_folders import default_cache

SUMMARY = "measure speed, memory and quality of methods side by side"
A_ROW_FAILED = 1
MACHINE = "machine"  # instead of a table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen bench`."""
    parser.epilog = f"tables: {', '.join(configs('bench'))}"
    parser.add_argument(
        "table",
        metavar="TABLE",
        help="a YAML file, or the name of a table in configs/bench/; machine: how fast the processor multiplies; "
        "peers: published code beside ours",
    )
    parser.add_argument("--rounds", type=at_least(1), help="how often each row is measured (default: as in the table)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help='rows to measure, such as "var-d16*"')
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="import the methods that the table names as module:function; only for tables that you trust",
    )
    parser.add_argument(
        "--out", type=Path, help="a folder for the report as JSON and Markdown, and the plot of quality against speed"
    )
    parser.add_argument(
        "--published",
        type=Path,
        metavar="FOLDER",
        help="for peers: a checkout of VAR, LlamaGen, Infinity or MAR, which is run",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Read and check the table, measure, print, write."""
    if args.table == "peers":
        return _peers(args)
    if args.published is not None:
        raise ValueError(f"--published is for the table peers, not {args.table}")
    if args.table == MACHINE:
        _tell_machine(args)
        return 0
    from contextlib import suppress
    from dataclasses import replace

    from var_toolkit.devices import find_device, tell_slow_dtype
    from var_toolkit.evaluation.bench.report import as_text, report, write_report
    from var_toolkit.evaluation.bench.rounds import measure, steps
    from var_toolkit.evaluation.bench.table import find_table, read_table

    path = find_table(args.table)
    table = read_table(path, allow_code=args.allow_code)
    table = table.only(args.only) if args.only else table
    table = replace(table, rounds=args.rounds) if args.rounds else table
    if args.out:
        check_writable(args.out)
    for device, dtype in dict.fromkeys((row.device, row.precision().wide) for row in table.rows):
        with suppress(ValueError):  # a device that is not there is an error of its rows
            tell_slow_dtype(find_device(device), dtype)
    from var_toolkit.progress import Progress

    with Progress(steps(table), "turns", leave=False) as bar:

        def on_step(what: str) -> None:
            bar.describe(what)
            bar.update()

        told = report(table, measure(table, cache=default_cache(), on_step=on_step), str(path))
    files = write_report(told, args.out, path.stem) if args.out else []
    if args.json:
        print(json.dumps({**told, "files": [str(file) for file in files]}))
    else:
        print(as_text(told), *files, sep="\n")
    if told["interrupted"]:
        raise KeyboardInterrupt
    return A_ROW_FAILED if any(row["error"] or row["quality_error"] for row in told["rows"]) else 0


def _tell_machine(args: argparse.Namespace) -> None:
    """Print the machine, how fast it multiplies, and the precision that this makes the fastest."""
    given = [name for name in ("rounds", "only", "out", "allow_code") if getattr(args, name)]
    if given:
        raise ValueError(f"--{given[0].replace('_', '-')} is for tables; remove it, or give a table")
    from var_toolkit.devices import find_device
    from var_toolkit.evaluation.bench.machine import machine, rates
    from var_toolkit.precision import precision_of

    fastest = precision_of("auto", find_device("auto"))
    facts = {**machine(), **rates(), "auto": f"{fastest.name} ({fastest.why})"}
    if args.json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):16} {value}")


def _peers(args: argparse.Namespace) -> int:
    """Published code beside ours."""
    from var_toolkit.evaluation.bench.peer_rows import chosen, code_in

    if args.out:
        raise ValueError("--out does not go with peers; redirect standard output, or use --json")
    peers, rounds = chosen(code_in(args.published), args.only), args.rounds or 5
    from var_toolkit.evaluation.bench.peers import as_text, compare
    from var_toolkit.progress import Progress

    with Progress(2 * (rounds + 1) * len(peers), "turns", leave=False) as bar:

        def on_turn(what: str) -> None:
            bar.describe(what)
            bar.update()

        rows = compare(args.published.resolve(), peers, rounds, on_turn)
    print(json.dumps({"rows": rows}) if args.json else as_text(rows))
    return 0
