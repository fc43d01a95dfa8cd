"""Images by HTTP: the form of requests and answers, and that they are those of Python."""

import asyncio

import numpy as np
import pytest
from small_service import DRAW, EDIT, asked, count_of, error_of, events_of, opened, pixels, running, until

from var_toolkit.serving import guards


def near(image, other) -> bool:
    """Whether two images are the same but for the rounding of products of another batch size."""
    return np.abs(np.asarray(image).astype(int) - np.asarray(other)).max() <= 1


@pytest.mark.parametrize(
    ("model", "request_", "call"),
    [
        ("letters", {"prompt": "letter c"}, {"class_labels": "letter c"}),
        ("letters", {"prompt": "7"}, {"class_labels": 7}),
        ("letters", {"class": 7, "prompt": ""}, {"class_labels": 7}),
        ("letters", {"class": "none"}, {"class_labels": None}),
        ("letters", {"class": 1, "settings": {"cfg": 3.0, "top_k": 4}}, {"class_labels": 1, "cfg": 3.0, "top_k": 4}),
        ("words", {"prompt": "red cube"}, {"prompt": "red cube"}),
        ("words", {"prompt": "red", "negative_prompt": "cube"}, {"prompt": "red", "negative_prompt": "cube"}),
        ("sizes", {"class": 1, "size": "4x6"}, {"class_labels": 1, "size": (4, 6)}),
        ("tokens", {"class": 1, "settings": {"speculate": "jacobi"}}, {"class_labels": 1, "speculate": "jacobi"}),
    ],
    ids=str,
)
def test_an_image_is_that_of_python(models, model, request_, call):
    with running(models) as service:
        answer = asked(service, lambda client: client.post(DRAW, json={"model": model, "seed": 5, **request_}))
    image = models[model].pipe(**call, seeds=5).images[0]
    assert pixels(answer).tobytes() == image.tobytes()
    width, height = image.size
    assert answer.json()["size"] == f"{width}x{height}"
    assert answer.json()["data"][0]["seed"] == 5


def test_the_first_model_is_the_default_and_seeds_count_up(models):
    with running(models) as service:
        answer = asked(service, lambda client: client.post(DRAW, json={"prompt": "3", "seed": 8, "n": 3}))
    expected = models["letters"].pipe([3] * 3, seeds=[8, 9, 10]).images
    assert [one["seed"] for one in answer.json()["data"]] == [8, 9, 10]
    assert [pixels(answer, number).tobytes() for number in range(3)] == [image.tobytes() for image in expected]


def test_a_seed_that_was_chosen_is_told(models):
    async def twice(client):
        first = await client.post(DRAW, json={"prompt": "3"})
        again = await client.post(DRAW, json={"prompt": "3", "seed": first.json()["data"][0]["seed"]})
        return first, again

    with running(models) as service:
        first, again = asked(service, twice)
    assert pixels(first).tobytes() == pixels(again).tobytes()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_format_of_the_file_is_that_asked_for(models, kind):
    with running(models) as service:
        answer = asked(service, lambda client: client.post(DRAW, json={"prompt": "3", "output_format": kind}))
    assert pixels(answer).format.lower() == kind == answer.json()["output_format"]


def test_a_plan_by_name_and_as_json_draws_what_its_settings_draw(models):
    async def three(client):
        (plan,) = (await client.get("/v1/plans?model=tokens")).json()["data"][:1]
        body = {"model": "tokens", "class": 1, "seed": 2}
        ways = {"plan": plan["name"]}, {"plan": plan["plan"]}, {"settings": plan["settings"]}
        return [await client.post(DRAW, json=body | way) for way in ways]

    with running(models) as service:
        answers = asked(service, three)
    assert len({pixels(answer).tobytes() for answer in answers}) == 1


def test_requests_that_wait_are_drawn_as_one_batch(models):
    """Different classes, seeds and numbers of images; another model and other settings are batches of their own."""
    requests = [{"prompt": str(k), "seed": 10 * k, "n": 1 + k % 2} for k in range(6)]
    others = [{"prompt": "1", "settings": {"cfg": 1.0}}, {"model": "words", "prompt": "red"}]

    async def all_at_once(client):
        sent = [asyncio.ensure_future(client.post(DRAW, json=one)) for one in (*requests, *others)]
        await until(lambda: len(service.line) == 11)
        service.start()
        return await asyncio.gather(*sent)

    with running(models, draws=False) as service:
        answers = asked(service, all_at_once)
    assert count_of(service, "vargen_batch_images_count") == 3
    assert count_of(service, "vargen_images_total") == 11
    for request, answer in zip(requests, answers, strict=False):
        seeds = range(request["seed"], request["seed"] + request["n"])
        alone = models["letters"].pipe([request["prompt"]] * request["n"], seeds=seeds, batch_size=1).images
        assert all(near(pixels(answer, number), image) for number, image in enumerate(alone))


def test_no_more_than_a_batch_is_drawn_together(models):
    with running(models, batch=3) as service:
        answer = asked(service, lambda client: client.post(DRAW, json={"prompt": "3", "n": 7}))
    assert len(answer.json()["data"]) == 7
    assert count_of(service, "vargen_batch_images_count") == 3


@pytest.mark.parametrize(("count", "shown"), [({}, 3), ({"partial_images": 0}, 0), ({"partial_images": 2}, 2)], ids=str)
def test_a_stream_shows_the_image_scale_by_scale(models, count, shown):
    body = {"prompt": "3", "seed": 4, "stream": True, **count}
    with running(models) as service:
        answer = asked(service, lambda client: client.post(DRAW, json=body))
    *previews, last = events_of(answer)
    assert [one["type"] for one in previews] == ["image_generation.partial_image"] * shown
    assert [one["partial_image_index"] for one in previews] == list(range(shown))
    assert last["type"] == "image_generation.completed"
    image = models["letters"].pipe(3, seeds=4).images[0]
    assert opened(last["b64_json"]).tobytes() == image.tobytes()
    assert all(opened(one["b64_json"]).size == image.size for one in previews)
    assert len({one["b64_json"] for one in previews}) == shown


def test_a_preview_is_the_sum_of_the_scales_so_far(models):
    seen = []
    models["letters"].pipe(3, seeds=4, callback_on_scale_end=lambda event: seen.append(event.preview()))
    body = {"prompt": "3", "seed": 4, "stream": True}
    with running(models) as service:
        events = events_of(asked(service, lambda client: client.post(DRAW, json=body)))
    found = np.asarray(opened(events[1]["b64_json"])) / 127.5 - 1
    assert np.abs(found - seen[1][0].clamp(-1, 1).permute(1, 2, 0).numpy()).max() < 0.01


REFUSED = [
    ({"prompt": "nobody"}, 400, "prompt", "class 'nobody' is not known"),
    ({"prompt": "10"}, 400, "prompt", "classes are 0 to 9"),
    ({"prompt": ""}, 400, "prompt", "no class is given"),
    ({"prompt": "1", "class": 2}, 400, "class", "give one of them"),
    ({"prompt": "1", "negative_prompt": "2"}, 400, "negative_prompt", "only models of text"),
    ({"prompt": "1", "model": "var-d30"}, 404, "model", "is not served here"),
    ({"prompt": "1", "model": "../letters"}, 404, "model", "is not served here"),
    ({"prompt": "1", "n": 0}, 400, "n", "greater than or equal to 1"),
    ({"prompt": "1", "n": True}, 400, "n", "valid integer"),
    ({"prompt": "1", "size": "128x128"}, 400, "size", "leave size out"),
    ({"prompt": "1", "size": "large"}, 400, "size", "match pattern"),
    ({"prompt": "1", "response_format": "url"}, 400, "response_format", "it must be b64_json"),
    ({"prompt": "1", "style": "vivid"}, 400, "style", "is no field of this request"),
    ({"prompt": "1", "seed": 2**63 - 1, "n": 2}, 400, "seed", "would exceed"),
    ({"prompt": "1", "stream": True, "n": 2}, 400, None, "a stream shows one image"),
    ({"prompt": "1", "partial_images": 2}, 400, None, "give stream true"),
    ({"prompt": "1", "settings": {"method": "os:system"}}, 400, "settings", "unknown key 'method'"),
    ({"prompt": "1", "settings": {"scorer": "os:system"}}, 400, "settings", "unknown key 'scorer'"),
    ({"prompt": "1", "settings": {"latent_scorer": "/tmp"}}, 400, "settings", "unknown key 'latent_scorer'"),
    ({"prompt": "1", "settings": {"top_k": "all"}}, 400, "settings", "expected a whole number"),
    ({"prompt": "1", "settings": {"cfg": -1}}, 400, "settings", "cfg is -1"),
    ({"prompt": "1", "plan": "fast"}, 404, "plan", "/v1/plans lists them"),
    ({"prompt": "1", "plan": {"kind": "Popen"}}, 400, "plan", "kind 'Popen' is unknown"),
    ({"prompt": "1", "plan": "fast", "settings": {"cfg": 1}}, 400, "settings", "give one of them"),
    ({"model": "words", "prompt": " "}, 400, "prompt", "there is no prompt"),
    ({"model": "words", "prompt": "blue"}, 400, "prompt", "blue"),
    ({"model": "words", "prompt": "red", "class": 1}, 400, "class", "give prompt instead"),
    ({"model": "editor", "prompt": "red"}, 400, "model", "send one to /v1/images/edits"),
    ({"model": "sizes", "class": 1, "size": "4000x4000"}, 400, "plan", "times as many"),
    ({"model": "sizes", "class": 1, "size": "9999x2"}, 400, "size", "sides are at most"),
    ({"model": "sizes", "class": 1, "settings": {"schedule": [1, 9999]}}, 400, "settings", "256 at most"),
    ({"model": "tokens", "class": 1, "settings": {"speculate": "draft"}}, 400, "settings", "needs a draft model"),
]


@pytest.mark.parametrize(("body", "status", "param", "words"), REFUSED, ids=str)
def test_what_cannot_be_drawn_is_one_line_that_names_the_field(models, body, status, param, words):
    with running(models, draws=False) as service:
        answer = asked(service, lambda client: client.post(DRAW, json=body))
        assert len(service.line) == 0
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert words in error["message"]


@pytest.mark.parametrize("change", ["best_of", "candidates", "verify"])
def test_a_plan_that_names_what_is_not_served_is_refused(models, change, monkeypatch):
    """Neither a module nor a folder that a plan names is looked at."""
    monkeypatch.setattr("var_toolkit.pipeline.read_scorer", lambda name: pytest.fail(f"{name} was opened"))
    plan = models["letters"].own_plan.to_json()
    if change == "best_of":
        plan["best_of"] = {"kind": "BestOf", "count": 2, "scorer": "os:system"}
    elif change == "candidates":
        plan["steps"][0]["search"] = {"kind": "Candidates", "count": 2, "scorer": "/etc"}
    else:
        plan = models["tokens"].shape.plan(speculate="jacobi").to_json()
    with running(models, draws=False) as service:
        model = "tokens" if change == "verify" else "letters"
        answer = asked(service, lambda client: client.post(DRAW, json={"model": model, "class": 1, "plan": plan}))
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "plan"


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[1, 2]", "application/json", 400),
        (b'{"prompt": "1"}', "text/plain", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"prompt": "\\ud800"}', "application/json", 400),
        (b'{"\\ud800": 1}', "application/json", 400),
        (b'{"n": ' + b"9" * 5000 + b"}", "application/json", 400),
        (b" " * (2**20 + 1), "application/json", 413),
    ],
    ids=["half", "list", "text", "deep", "surrogate", "surrogate-key", "huge-number", "large"],
)
def test_a_body_that_is_no_request_is_refused(models, content, kind, status):
    with running(models, draws=False) as service:
        answer = asked(service, lambda client: client.post(DRAW, content=content, headers={"content-type": kind}))
    assert answer.status_code == status
    assert error_of(answer)["type"] == "invalid_request_error"


@pytest.mark.parametrize(("path", "kind"), [(DRAW, "application/json"), (EDIT, "multipart/form-data; boundary=x")])
def test_a_body_of_unknown_length_is_read_up_to_the_limit(models, path, kind, monkeypatch):
    monkeypatch.setattr(guards, "MOST_JSON", 4096)
    monkeypatch.setattr(guards, "MOST_UPLOAD", 4096)
    sent = []

    async def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        while len(sent) < 1000:
            sent.append(1)
            yield b" " * 1000

    with running(models, draws=False) as service:
        headers = {"content-type": kind}
        answer = asked(service, lambda client: client.post(path, content=endless(), headers=headers))
    assert answer.status_code == 413
    assert "larger than 4096 bytes" in error_of(answer)["message"]
    assert len(sent) < 10


def test_one_request_that_fails_fails_alone(models, monkeypatch):
    """A batch that cannot be drawn is drawn again image by image."""
    from var_toolkit.serving import drawing

    whole = drawing.draw

    def draw(batch, watch):
        if any(piece.seed == 2 for piece in batch):
            raise RuntimeError("out of luck")
        return whole(batch, watch)

    monkeypatch.setattr(drawing, "draw", draw)

    async def all_at_once(client):
        sent = [asyncio.ensure_future(client.post(DRAW, json={"prompt": "1", "seed": seed})) for seed in range(4)]
        await until(lambda: len(service.line) == 4)
        service.start()
        return await asyncio.gather(*sent)

    with running(models, draws=False) as service:
        answers = asked(service, all_at_once)
    assert [answer.status_code for answer in answers] == [200, 200, 500, 200]
    assert error_of(answers[2])["type"] == "server_error"
    assert "out of luck" not in answers[2].text  # which may name paths of this machine
