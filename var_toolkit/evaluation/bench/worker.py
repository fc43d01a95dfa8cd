"""The process of one row: reads orders from standard input and answers on standard output, one JSON object per line.

Started by `bench.child`. It ends when its standard input is closed, so it does not outlive its parent for long.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from var_toolkit.conditions.prompt_embeds import PromptEmbeds
from var_toolkit.core.plan import Plan
from var_toolkit.devices import clock
from var_toolkit.evaluation.bench.memory import forget_peak, held, peak
from var_toolkit.evaluation.bench.quality import prompts_of
from var_toolkit.evaluation.bench.random_weights import random_pipeline, random_prompts
from var_toolkit.evaluation.bench.table import Row
from var_toolkit.images import to_uint8
from var_toolkit.loading import load
from var_toolkit.methods.speculative.tally import Tally, together
from var_toolkit.output import PipelineOutput
from var_toolkit.pipeline import Pipeline

QUALITY_BATCH = 64
PROMPTS = 64  # that a row draws in turns
TURN = 1_000_000  # seeds reserved for one turn of a row


class Worker:
    """A row's networks, loaded and warmed up."""

    def __init__(self, row: Row, threads: int) -> None:
        torch.set_num_threads(threads)
        before = peak(torch.device("cpu"))
        self.row = row
        self.pipe = _pipeline(row)
        self.pipe = self.pipe.compile() if row.compile else self.pipe.pack()
        self.plan = self.pipe.plan(**row.plan)
        self.prompts = _prompts(self.pipe, row)  # each is read once, before any measurement
        # The first run warms up. On the CPU one image is enough, unless graphs are made for a batch size.
        size = 1 if self.pipe.device.type == "cpu" and not row.compile else row.batch
        _draw(self.pipe, self.plan, self._subjects(0, size), range(size))
        self.process_bytes = before

    def facts(self) -> dict[str, Any]:
        """The device of the row, and the memory of its process before the networks were loaded."""
        device = self.pipe.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        facts = {"device": str(device), "gpu": name, "precision": self.pipe.precision}
        return {**facts, "process_memory_bytes": self.process_bytes}

    def turn(self, number: int, seconds: float) -> dict[str, Any]:
        """Draw batches for at least `seconds`: seconds per image of each batch, memory, and the engine's counts."""
        drawing: list[float] = []
        tallies: list[Tally] = []
        decoding: list[float] = []
        seed, size = number * TURN, self.row.batch
        forget_peak(self.pipe.device)
        before, added = held(self.pipe.device), 0
        began = time.perf_counter()
        while not drawing or time.perf_counter() - began < seconds:
            one = _draw(self.pipe, self.plan, self._subjects(seed, size), range(seed, seed + size))
            added = added or one.peak_bytes - before  # of the first batch: later peaks are those of the decoder
            drawing.append(one.transformer / size)
            decoding.append(one.decoder / size)
            tallies += [one.run.speculation] if one.run.speculation else []
            seed += size
        whole = together(tallies)
        return {
            "transformer": drawing,
            "decoder": decoding,
            "peak_memory_bytes": peak(self.pipe.device),
            "transformer_memory_bytes": max(added, 0),
            "cache_bytes_per_image": one.run.cache_bytes // size,
            "forward_passes": one.run.forward_passes,
            "speculation": whole.as_json() if whole else None,
        }

    def images(self, path: str) -> dict[str, Any]:
        """Write the images that the row's quality is judged on: uint8 (N, 3, h, w), of class or prompt i and seed i."""
        import numpy as np

        np.save(path, torch.cat(list(self.drawn(self.row.quality))).numpy())
        return {"classes": None if self.pipe.text else self.pipe.backbone.config.num_classes}

    def drawn(self, count: int) -> Iterator[Tensor]:
        """Batches of images, uint8 (B, 3, h, w), on the CPU; image i has seed i, and class or prompt i, in turns."""
        how: dict[str, Any] = {"plan": self.plan, "batch_size": QUALITY_BATCH, "output_type": "pt"}
        drawn = self.pipe.stream(**self._subjects(0, count), seeds=range(count), **how)
        yield from (to_uint8(batch.images) for batch in drawn)

    def _subjects(self, first: int, count: int) -> dict[str, Any]:
        """Keywords of a call: what some images show."""
        kinds = self.pipe.backbone.config.num_classes if self.prompts is None else len(self.prompts["prompt_embeds"])
        numbers = [number % kinds for number in range(first, first + count)]
        if self.prompts is None:
            return {"class_labels": numbers}
        return {**self.prompts, "prompt_embeds": self.prompts["prompt_embeds"].of_rows(numbers)}


def _pipeline(row: Row) -> Pipeline:
    open_it = random_pipeline if row.weights == "random" else load
    pipe = open_it(row.source, device=row.device, dtype=row.dtype)
    return pipe if row.decoder is None else pipe.load_decoder(row.decoder)


def _prompts(pipe: Pipeline, row: Row) -> dict[str, PromptEmbeds] | None:
    """The features of a row's prompts, and of the null prompt if the network needs one; None for a model of classes."""
    if pipe.text is None:
        return None
    if row.weights == "random":
        found, null = random_prompts(pipe.text, PROMPTS), random_prompts(pipe.text, 1)
    else:
        found = pipe.encode_prompts(prompts_of(row, PROMPTS))
        null = found if pipe.text.learned_null else pipe.encode_prompts("")
        pipe.release_text_encoder()
    return {"prompt_embeds": found} | ({} if pipe.text.learned_null else {"negative_prompt_embeds": null})


class Drawn(NamedTuple):
    """One batch: seconds of the transformer and of the tokenizer's decoder, and what was counted."""

    transformer: float
    decoder: float
    run: PipelineOutput
    peak_bytes: int  # before the decoder


def _draw(pipe: Pipeline, plan: Plan, subjects: dict[str, Any], seeds: range) -> Drawn:
    began = clock(pipe.device)
    (run,) = pipe.stream(**subjects, seeds=seeds, plan=plan, batch_size=len(seeds), output_type="latent")
    drawn, peak_bytes = clock(pipe.device), peak(pipe.device)
    pipe.decode(run.latents.to(pipe.device))
    return Drawn(drawn - began, clock(pipe.device) - drawn, run, peak_bytes)


def main() -> None:
    """Answer orders until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    worker: Worker | None = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if worker is None:
                worker = Worker(Row(**order["row"]), order["threads"])
                answer = worker.facts()
            elif "turn" in order:
                answer = worker.turn(order["turn"], order["seconds"])
            else:
                answer = worker.images(order["images"])
        except Exception as error:  # any error means that this row failed
            traceback.print_exc()
            answer = {"error": _in_one_line(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _in_one_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    kind = type(error).__name__
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "out of memory; choose a smaller batch, or a dtype of 16 bits"
    if not text:
        return kind
    return text[0] if isinstance(error, ValueError) else f"{kind}: {text[0]}"


if __name__ == "__main__":
    main()
