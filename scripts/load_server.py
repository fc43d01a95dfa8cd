"""Load a running server with clients, and check every answer: `vargen serve` in one terminal, this in another.

    python scripts/load_server.py --url http://127.0.0.1:8000 --model stilllife-var-small --clients 20 --seconds 60

Each client asks for one image after another, of a class that follows from the seed, and compares it with the image that
the model draws alone. One in eight asks for a stream, and one in sixteen leaves while its image waits or is drawn. A
client that is answered 429 waits as long as it is told. With --compare, throughput while 16 requests or more wait is
measured beside the pipeline's own batches of 16, and when the first preview of a stream comes.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import re
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import httpx
import numpy as np
from PIL import Image

import var_toolkit
from var_toolkit.pipeline import Pipeline

DRAW = "/v1/images/generations"
SEEDS = 40  # that are asked for again and again
TOGETHER = 16
ROUNDS = 5
IMAGES = 32  # of a round
NEAR = 32  # levels by which an image may differ where the rounding of another batch size has changed a token


@dataclass
class Seen:
    """What became of the requests."""

    answers: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # bytes of the server, every second


def expected_images(pipe: Pipeline) -> dict[int, np.ndarray]:
    """The image of each seed, drawn alone."""
    classes = len(pipe.class_names)
    return {seed: np.asarray(pipe(37 * seed % classes, seeds=seed).images[0]).astype(int) for seed in range(SEEDS)}


def verdict(drawn: np.ndarray, seed: int, expected: dict[int, np.ndarray]) -> str:
    """Whether an image is that of its seed: equal, equal but for rounding, with another token, or mixed up."""
    far = np.abs(drawn - expected[seed])
    if far.max() <= 1:
        return "equal" if far.max() == 0 else "equal to one level of 255"
    nearest = min(expected, key=lambda other: np.abs(drawn - expected[other]).mean())
    return "another token" if nearest == seed and far.mean() < NEAR else "mixed up"


def opened(text: str) -> np.ndarray:
    """The pixels of an image file in base64."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))).astype(int)


async def visit(client: httpx.AsyncClient, body: dict, expected: dict[int, np.ndarray], random: Random) -> str:
    """One request, and what became of it."""
    if random.random() < 1 / 16:
        try:
            await client.post(DRAW, json=body, timeout=random.random())
        except httpx.TimeoutException:
            return "left"
        return "answered before leaving"
    if random.random() < 1 / 8:
        answer = await client.post(DRAW, json=body | {"stream": True})
        if answer.status_code == 200:
            last = json.loads(answer.text.strip().split("\n\n")[-1].split("data: ", 1)[1])
            return f"stream: {verdict(opened(last['b64_json']), body['seed'], expected)}"
    else:
        answer = await client.post(DRAW, json=body)
        if answer.status_code == 200:
            return verdict(opened(answer.json()["data"][0]["b64_json"]), body["seed"], expected)
    if answer.status_code == 429:
        await asyncio.sleep(min(5, int(answer.headers["retry-after"])))
    return str(answer.status_code)


async def one_client(
    client: httpx.AsyncClient, number: int, end: float, model: str, classes: int, expected: dict, seen: Seen
) -> None:
    """Requests one after another until the end."""
    random = Random(number)
    while time.monotonic() < end:
        seed = random.randrange(SEEDS)
        body, began = {"model": model, "class": 37 * seed % classes, "seed": seed}, time.monotonic()
        try:
            told = await visit(client, body, expected, random)
        except httpx.HTTPError as error:
            told = type(error).__name__
        seen.answers[told] += 1
        if "equal" in told or "token" in told:
            seen.seconds.append(time.monotonic() - began)


async def watch_memory(client: httpx.AsyncClient, end: float, seen: Seen) -> None:
    """The memory of the server, every second."""
    while time.monotonic() < end:
        text = (await client.get("/metrics")).text
        if found := re.search(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE):
            seen.memory.append(float(found[1]))
        await asyncio.sleep(1)


async def load(args: argparse.Namespace, pipe: Pipeline) -> None:
    """Load the server, and print what was seen."""
    expected, seen, classes = expected_images(pipe), Seen(), len(pipe.class_names)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=args.url, timeout=300, limits=limits) as client:
        end = time.monotonic() + args.seconds
        visits = (one_client(client, k, end, args.model, classes, expected, seen) for k in range(args.clients))
        await asyncio.gather(*visits, watch_memory(client, end, seen))
        counts = (await client.get("/metrics")).text
    print(f"{sum(seen.answers.values())} requests of {args.clients} clients in {args.seconds} s")
    for told, count in sorted(seen.answers.items()):
        print(f"  {count:6} {told}")
    if len(seen.seconds) > 1:
        cuts = statistics.quantiles(seen.seconds, n=20)
        print(f"seconds of an answer: p50 {cuts[9]:.2f}, p95 {cuts[18]:.2f}")
    if seen.memory:
        early = seen.memory[len(seen.memory) // 3]
        print(f"memory: {early / 1e6:.0f} MB after a third, {seen.memory[-1] / 1e6:.0f} MB at the end")
    for name in ("batch_images_count", "images_total", "abandoned_total", "refused_total"):
        print(f"vargen_{name}: {sum(map(float, re.findall(rf'^vargen_{name}(?:{{.*}})? (.+)$', counts, re.M))):.0f}")


async def compare(args: argparse.Namespace, pipe: Pipeline) -> None:
    """Throughput of requests that wait beside batches of 16 in this process, in turns; and the first preview."""
    shares, ratios = [], []
    async with httpx.AsyncClient(base_url=args.url, timeout=300) as client:
        for turn in range(ROUNDS + 1):  # the first is a warm-up
            began = time.perf_counter()
            pipe([1] * IMAGES, seeds=range(IMAGES), batch_size=TOGETHER)
            offline = time.perf_counter() - began
            served = await waiting_requests(client, args.model)
            share = await first_preview(client, args.model, turn)
            if turn:
                ratios.append(offline / served)
                shares.append(share)
                print(f"offline {offline:.3f} s, served {served:.3f} s, first preview at {share:.2f} of a stream")
    print(f"throughput of the server: {statistics.median(ratios):.2f} of the offline batch (median)")
    print(f"first preview: at {statistics.median(shares):.2f} of the whole time (median)")


async def waiting_requests(client: httpx.AsyncClient, model: str) -> float:
    """The seconds that requests take which came while others were drawn, so that all of them wait at first."""
    before = asyncio.ensure_future(client.post(DRAW, json={"model": model, "class": 1, "n": TOGETHER}))
    await asyncio.sleep(0.2)  # until they are drawn
    bodies = [{"model": model, "class": 1, "seed": seed} for seed in range(IMAGES)]
    waiting = [asyncio.ensure_future(client.post(DRAW, json=body)) for body in bodies]
    assert (await before).status_code == 200
    began = time.perf_counter()
    assert all(answer.status_code == 200 for answer in await asyncio.gather(*waiting))
    return time.perf_counter() - began


async def first_preview(client: httpx.AsyncClient, model: str, seed: int) -> float:
    """When the first preview of a stream comes, as a share of the whole."""
    began, times = time.perf_counter(), []
    async with client.stream("POST", DRAW, json={"model": model, "class": 1, "seed": seed, "stream": True}) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                times.append(time.perf_counter() - began)
    return times[0] / times[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="stilllife-var", help="a model of classes that the server was started with")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--compare", action="store_true", help="measure throughput and the first preview instead")
    args = parser.parse_args()
    pipe = var_toolkit.load(args.model).pack()
    asyncio.run((compare if args.compare else load)(args, pipe))


if __name__ == "__main__":
    main()
