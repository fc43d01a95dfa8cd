"""The report of a measured table: figures of each row, ratios to the first row, as text and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from var_toolkit.evaluation.bench.machine import machine, threads
from var_toolkit.evaluation.bench.rounds import Measured
from var_toolkit.evaluation.bench.table import Table
from var_toolkit.files import write_whole

MISSING = "-"


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest value of a measurement over the rounds."""

    median: float
    low: float
    high: float


def paired_ratio(first: Sequence[float], own: Sequence[float]) -> Spread:
    """The speed relative to the first row: ratios of seconds, round by round, since a disturbance affects both rows.

    After an interruption, the last round of the first row may have no counterpart; it is not counted.
    """
    ratios = [one / other for one, other in zip(first, own, strict=False)]
    return Spread(median(ratios), min(ratios), max(ratios))


def report(table: Table, found: list[Measured], source: str) -> dict[str, Any]:
    """The report as one JSON object: settings, machine, and for each row the results and every raw round."""
    return {
        "table": source,
        "rounds": table.rounds,
        "seconds": table.seconds,
        "machine": machine(),
        "interrupted": any(one.unfinished(table.rounds) for one in found),
        "rows": [{**_row(one, found[0]), "unfinished": one.unfinished(table.rounds)} for one in found],
    }


def _row(one: Measured, first: Measured) -> dict[str, Any]:
    counted = one.size.cost
    facts = {
        **asdict(one.row),
        "model_in_words": str(one.row.source),
        "plan_in_words": one.size.plan,
        "error": one.error,
        "quality_error": one.quality_error,
        "parameters": one.size.parameters,
        "tokenizer_parameters": one.size.tokenizer_parameters,
        "predicted": {
            "forward_passes": counted.forward_passes,
            "multiply_adds": counted.multiply_adds,
            "decoder_multiply_adds": one.size.decoder_multiply_adds,
            "cache_bytes_per_image": counted.cache_bytes(one.size.wide),
            "ratio": _work(first) / _work(one),
            "transformer_ratio": first.size.cost.multiply_adds / counted.multiply_adds,
        },
        **one.facts,
    }
    if one.error is None and one.turns:
        facts |= _figures(one, first)
    return {**facts, "quality_found": one.quality, "raw_rounds": one.turns}


def _figures(one: Measured, first: Measured) -> dict[str, Any]:
    seconds = _seconds(one, "transformer", "decoder")
    comparable = first.error is None and bool(first.turns)
    peak = max(turn["peak_memory_bytes"] for turn in one.turns)
    empty = 0 if one.facts["gpu"] else one.facts["process_memory_bytes"]
    return {
        "seconds_per_image": median(seconds),
        "transformer_seconds_per_image": median(_seconds(one, "transformer")),
        "decoder_seconds_per_image": median(_seconds(one, "decoder")),
        "images_per_second": 1 / median(seconds),
        "ratio": asdict(paired_ratio(_seconds(first, "transformer", "decoder"), seconds)) if comparable else None,
        "transformer_ratio": asdict(paired_ratio(_seconds(first, "transformer"), _seconds(one, "transformer")))
        if comparable
        else None,
        "peak_memory_bytes": peak,
        "memory_growth_bytes": max(peak - empty, 0),
        "transformer_memory_bytes": one.turns[0]["transformer_memory_bytes"],
        "cache_bytes_per_image": one.turns[-1]["cache_bytes_per_image"],
        "forward_passes": one.turns[-1]["forward_passes"],
        "speculation": one.turns[-1].get("speculation"),
    }


def _seconds(one: Measured, *parts: str) -> list[float]:
    """Seconds per image of each round: the median over its batches, of one part or of the sum of several."""
    return [median(map(sum, zip(*(turn[part] for part in parts), strict=True))) for turn in one.turns]


def _work(one: Measured) -> int:
    return one.size.cost.multiply_adds + one.size.decoder_multiply_adds


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.3g}" if 0.001 <= value < 1000 else f"{value:.0f}" if value >= 1000 else f"{value:.5f}"


def _ratio(row: dict[str, Any], key: str) -> str:
    told = row[key]
    return f"{told['median']:.2f} ({told['low']:.2f} to {told['high']:.2f})" if told else MISSING


def _mega(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count < 1e8 else f"{count / 1e6:.0f} M"


def _mebi(count: int) -> str:
    return f"{count / 2**20:.2f}" if count < 10 * 2**20 else f"{count / 2**20:.0f}"


@dataclass(frozen=True)
class Column:
    """A column of the table: its heading, and its text for a row that was measured."""

    heading: str
    text: Callable[[dict[str, Any]], str]


COLUMNS = (
    Column("s/image", lambda row: _number(row["seconds_per_image"])),
    Column("transformer", lambda row: _number(row["transformer_seconds_per_image"])),
    Column("decoder", lambda row: _number(row["decoder_seconds_per_image"])),
    Column("images/s", lambda row: _number(row["images_per_second"])),
    Column("ratio", lambda row: _ratio(row, "ratio")),
    Column("transformer ratio", lambda row: _ratio(row, "transformer_ratio")),
    Column("predicted", lambda row: _predicted(row)),
    Column("G mult-adds", lambda row: _number(row["predicted"]["multiply_adds"] / 1e9)),
    Column("passes", lambda row: str(row["forward_passes"])),
    Column("parameters", lambda row: _mega(row["parameters"])),
    Column("KV MiB", lambda row: _mebi(row["cache_bytes_per_image"])),
    Column("work MiB", lambda row: _mebi(row["transformer_memory_bytes"])),
    Column("peak MiB", lambda row: f"{_mebi(row['peak_memory_bytes'])} (+{_mebi(row['memory_growth_bytes'])})"),
)
SPECULATION_COLUMNS = (
    Column("tokens/pass", lambda row: f"{row['speculation']['tokens_per_pass']:.2f}"),
    Column("drafter passes", lambda row: f"{row['speculation']['drafter_passes_per_image']:.0f}"),
    Column("accepted", lambda row: _share(row["speculation"]["acceptance"])),
    Column("fallen back", lambda row: str(row["speculation"]["fall_backs"])),
)
QUALITY_COLUMNS = (
    Column("agreement", lambda row: f"{100 * row['quality_found']['class_agreement']:.1f} %"),
    Column("distance", lambda row: _number(row["quality_found"]["distance"])),
)
PROMPT_COLUMNS = (Column("prompts right", lambda row: f"{100 * row['quality_found']['prompts_right']:.1f} %"),)


def _predicted(row: dict[str, Any]) -> str:
    """The predicted ratio; unknown for speculative decoding, whose gain depends on acceptance."""
    return MISSING if row["speculation"] else f"{row['predicted']['transformer_ratio']:.2f}"


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.0f} %"


def has_speculation(told: dict[str, Any]) -> bool:
    """Whether any row used speculative decoding."""
    return any(row.get("speculation") for row in told["rows"])


def has_quality(told: dict[str, Any], figure: str = "class_agreement") -> bool:
    """Whether this figure of the quality of any row is known."""
    return any(_judged(row, figure) for row in told["rows"])


def _judged(row: dict[str, Any], figure: str) -> bool:
    return figure in (row["quality_found"] or {})


def cells(told: dict[str, Any]) -> list[list[str]]:
    """The table: headings, then the rows. A row without results has the reason as the only cell after its name."""
    speculation = SPECULATION_COLUMNS if has_speculation(told) else ()
    quality = QUALITY_COLUMNS if has_quality(told) else ()
    prompts = PROMPT_COLUMNS if has_quality(told, "prompts_right") else ()
    columns = [*COLUMNS, *speculation, *quality, *prompts]
    lines = [["row", *(column.heading for column in columns)]]
    for row in told["rows"]:
        if row["error"] is not None:
            lines.append([row["name"], f"failed: {row['error']}"])
            continue
        if not row["raw_rounds"]:
            lines.append([row["name"], f"unfinished: {row['unfinished']}"])
            continue
        unknown = {c.heading for c in SPECULATION_COLUMNS if row["speculation"] is None}
        unknown |= {c.heading for c in QUALITY_COLUMNS if not _judged(row, "class_agreement")}
        unknown |= {c.heading for c in PROMPT_COLUMNS if not _judged(row, "prompts_right")}
        lines.append([row["name"], *(MISSING if c.heading in unknown else c.text(row) for c in columns)])
    return lines


def as_text(told: dict[str, Any]) -> str:
    """The table for the terminal, with the legend below."""
    lines = cells(told)
    whole = [line for line in lines if len(line) == len(lines[0])]
    widths = [max(len(line[i]) for line in whole) for i in range(len(lines[0]))]
    widths[0] = max(len(line[0]) for line in lines)
    out = []
    for name, *rest in lines:
        failed = len(rest) + 1 < len(widths)
        texts = rest if failed else [text.rjust(width) for text, width in zip(rest, widths[1:], strict=True)]
        out.append("  ".join([name.ljust(widths[0]), *texts]).rstrip())
    return "\n".join([*out, "", *legend(told)])


def as_markdown(told: dict[str, Any]) -> str:
    """The table, the legend and each row's plan in Markdown."""
    lines = cells(told)
    columns = len(lines[0])
    ruler = ["---", *["---:"] * (columns - 1)]
    filled = [[text.replace("|", "\\|") for text in line] + [""] * (columns - len(line)) for line in lines]
    rows = [f"| {' | '.join(line)} |" for line in (filled[0], ruler, *filled[1:])]
    plans = [f"- `{row['name']}`: {_settings(row)}; {row['plan_in_words']}" for row in told["rows"]]
    return "\n".join([*rows, "", *(f"{line}  " for line in legend(told)), "", *plans, ""])


def _settings(row: dict[str, Any]) -> str:
    weights = " with random weights" if row["weights"] == "random" else ""
    return (
        f"{row['model_in_words']}{weights}, {row['dtype']}, {row.get('gpu') or row.get('device')}, batch {row['batch']}"
    )


def legend(told: dict[str, Any]) -> list[str]:
    """What the columns mean and on which machine they were measured, one sentence per line."""
    on = told["machine"]
    lines = [
        f"{on['cpu']}, {threads(on['threads'])}, torch {on['torch']}; medians of {told['rounds']} "
        f"round{'' if told['rounds'] == 1 else 's'} in which the rows take turns",
        "s/image: seconds per image; the next two columns are the shares of the transformer and of the decoder",
        f"ratio: how many times as fast as {told['rows'][0]['name']}, median of the rounds (lowest to highest); "
        "predicted: the transformer's ratio computed from multiply-adds alone; G mult-adds: billions of multiply-adds "
        "of the transformer per image; passes: forward passes per batch",
        "KV MiB: keys and values per image; work MiB: memory that the transformer needs for a batch beside its "
        "weights, keys and values included (on the CPU of the first batch, within some 100 MiB); peak MiB: memory of "
        "the process while it draws (in brackets beyond that of an empty process); on CUDA both are of torch's "
        "allocator",
    ]
    if has_speculation(told):
        lines.append(
            "tokens/pass: tokens per forward pass of the target and image; drafter passes: per image; accepted: share "
            "of the drafted tokens; fallen back: images of the last round that stopped drafting, as it saved no time"
        )
    if judged := _counts(told, "class_agreement"):
        lines.append(
            f"agreement: share of {judged} images in which the embedded classifier sees the "
            "requested class; distance: Fréchet distance of its features to those of new renderings, which is not FID"
        )
    if judged := _counts(told, "prompts_right"):
        lines.append(
            f"prompts right: share of {judged} images in which the embedded detector sees all that their prompts of "
            "scenes ask for"
        )
    failed = {row["name"]: row["quality_error"] for row in told["rows"] if row["quality_error"] is not None}
    unfinished = [f"{row['name']} ({row['unfinished']})" for row in told["rows"] if row["unfinished"]]
    return [
        *lines,
        *(f"quality of {name}: failed: {why}" for name, why in failed.items()),
        *([f"interrupted, unfinished: {'; '.join(unfinished)}"] if unfinished else []),
    ]


def _counts(told: dict[str, Any], figure: str) -> str:
    """The numbers of images that this figure is of, for the legend."""
    counts = {row["quality_found"]["images"] for row in told["rows"] if _judged(row, figure)}
    return ", ".join(map(str, sorted(counts)))


def write_report(told: dict[str, Any], folder: Path, name: str) -> list[Path]:
    """NAME.json, NAME.md and, where quality was measured, NAME.png; returns them."""
    texts = {"json": json.dumps(told, indent=2) + "\n", "md": as_markdown(told)}
    written = []
    for ending, text in texts.items():
        written.append(folder / f"{name}.{ending}")
        write_whole(written[-1], lambda to, text=text: to.write_text(text, encoding="utf-8"))  # type: ignore[misc]
    if has_quality(told):
        from var_toolkit.evaluation.bench.plot import write_plot

        written.append(folder / f"{name}.png")
        write_plot(told, written[-1])
    return written
