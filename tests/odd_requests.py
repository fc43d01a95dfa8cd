"""Odd requests to the server, from a seed: fields of wrong types, mutated plans, broken bodies, files that are none."""

import copy
import io
import json
from random import Random
from typing import get_origin

from PIL import Image

from var_toolkit.setting_table import PROPOSERS, SETTINGS

DRAW, EDIT = "/v1/images/generations", "/v1/images/edits"
NUMBERS = [0, 1, 2, 3, -1, 10**6, 2**31, 2**63 - 1, 2**63, 10**400, 0.5, -0.0, 1e300, float("nan"), float("inf")]
WORDS = [
    "", " ", "1", "red", "red cube", "none", "letter c", "\0", "\ud800", "a" * 5000, "é" * 30, "null", "os:system",
    "/etc/passwd", "../../etc", "file:///etc/passwd", "clip=/tmp", "__import__('os')", "1,2,3", "6x6", "0x0", "auto",
    "b64_json", "url", "png", "true", "[", "{}", "letters", "words", "sizes", "tokens", "editor", "%s", "${HOME}",
]  # fmt: skip
LIKELY = [
    0, 1, 2, 3, 4, 0.5, 1.5, 5.0, True, [1, 2, 3], [0, 2], [2], [0.1, 0.9], [0.4], "1,2", "linear", "constant",
    "jacobi", "ngram", "early-exit", "repeat", "kseq", "lantern", "grouped", "auto", "published", "off", "euler",
]  # fmt: skip
SUBJECTS = {"words": "red cube", "editor": "red"}
FIELDS = [
    "model", "prompt", "n", "size", "response_format", "output_format", "stream", "partial_images", "seed", "class",
    "negative_prompt", "plan", "settings", "quality", "background", "moderation", "user", "keep_pixels", "style",
]  # fmt: skip
PATHS = [
    "/", "/v1/models", "/v1/models/x", "/v1/models/../../etc", "/v1/classes", "/v1/plans", "/health", "/ready",
    "/metrics", "/openapi.json", "/docs", "/v1/%00", "/v1/models/%ff", "//v1/models",
]  # fmt: skip


def any_value(random: Random, depth: int = 0):
    """A JSON value of any kind, half of the time one that may mean something."""
    if random.random() < 0.5:
        return copy.deepcopy(random.choice(LIKELY))
    kind = random.randrange(7 if depth < 3 else 5)
    if kind == 0:
        return random.choice([None, True, False])
    if kind <= 2:
        return random.choice(NUMBERS)
    if kind <= 4:
        return random.choice(WORDS)
    if kind == 5:
        return [any_value(random, depth + 1) for _ in range(random.randrange(4))]
    return {random.choice(WORDS): any_value(random, depth + 1) for _ in range(random.randrange(3))}


def mutated(random: Random, value):
    """A JSON value with one of its parts replaced, removed or repeated."""
    value = copy.deepcopy(value)
    here = value
    while True:
        places = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not places:
            return value
        place = random.choice(places)
        if isinstance(here[place], dict | list) and random.random() < 0.8:
            here = here[place]
            continue
        if random.random() < 0.7:
            here[place] = any_value(random, 2)
        elif isinstance(here, dict):
            del here[place]
        else:
            here.append(copy.deepcopy(here[place]))
        return value


def odd_settings(random: Random) -> dict:
    """Settings by their names, most of them with values of their types."""
    found = {}
    for name in random.sample(list(SETTINGS), random.randrange(1, 4)):
        kinds = [get_origin(kind) or kind for kind in SETTINGS[name].types]
        likely = [value for value in LIKELY if type(value) in [*kinds, *([list] if tuple in kinds else [])]]
        found[name] = random.choice(likely) if likely and random.random() < 0.8 else any_value(random, 1)
    if random.random() < 0.3:
        found["speculate"] = random.choice(PROPOSERS)
    return found


def odd_fields(random: Random, models: dict[str, list[dict]]) -> dict:
    """The fields of a request, a few of them odd, or none. `models` have the plans of each."""
    model = random.choice(list(models))
    good = {"model": model, "prompt": SUBJECTS.get(model, "1"), "seed": random.randrange(100)}
    kind = random.random()
    if kind < 0.25:
        good["plan"] = mutated(random, random.choice(models[model]))
    elif kind < 0.5:
        good["settings"] = odd_settings(random)
    else:
        for _ in range(random.randrange(3)):
            good[random.choice(FIELDS)] = any_value(random)
    return good


def odd_file(random: Random) -> bytes:
    """An image file, whole or damaged, or none at all."""
    mode = random.choice(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "F"])
    image = Image.new(mode, (random.choice([1, 8, 64, 64]), random.choice([64, 64, 8])))
    file = io.BytesIO()
    image.save(file, format="tiff" if mode in ("CMYK", "F") else "png")
    found = bytearray(file.getvalue())
    if random.random() < 0.3:
        found[random.randrange(len(found))] ^= 0xFF
    if random.random() < 0.2:
        del found[random.randrange(len(found)) :]
    return bytes(found)


def odd_request(random: Random, models: dict[str, list[dict]]) -> tuple[str, str, dict]:
    """A method, a path, and the keywords of a call of httpx."""
    kind = random.random()
    if kind < 0.6:
        body = json.dumps(odd_fields(random, models)).encode()
        return "POST", DRAW, {"content": body, "headers": {"content-type": "application/json"}}
    if kind < 0.7:
        body = bytearray(json.dumps(odd_fields(random, models)).encode())
        for _ in range(random.randrange(1, 4)):
            body[random.randrange(len(body))] = random.randrange(256)
        types = ["application/json", "text/plain", "multipart/form-data", "multipart/form-data; boundary=x", ""]
        headers = {"content-type": random.choice(types)}
        return "POST", random.choice([DRAW, EDIT]), {"content": bytes(body), "headers": headers}
    if kind < 0.9:
        fields = {k: v if isinstance(v, str) else json.dumps(v) for k, v in odd_fields(random, models).items()}
        data = {k: v.encode("utf-8", "replace").decode() for k, v in fields.items()}
        likely = {"image": 0.9, "mask": 0.5, "image[]": 0.1, "x": 0.05}
        files = {name: odd_file(random) for name, share in likely.items() if random.random() < share}
        return "POST", EDIT, {"data": data, "files": files or None}
    query = {random.choice(["model", "pattern", "x"]): str(any_value(random)).encode("utf-8", "replace")[:2000]}
    return random.choice(["GET", "GET", "PUT", "DELETE", "HEAD"]), random.choice(PATHS), {"params": query}
