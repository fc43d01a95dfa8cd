"""What surrounds the drawing: queue, cancellation, keys, lists, state and counts."""

import asyncio
import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from small_service import DRAW, asked, client_of, count_of, error_of, pixels, running, until
from starlette.requests import ClientDisconnect

from var_toolkit.serving import line as line_module
from var_toolkit.serving.app import build
from var_toolkit.serving.line import ClosedError, FullError, Line

ONE = {"prompt": "1", "seed": 0}


def test_a_full_queue_answers_429_and_takes_requests_again(models):
    async def three(client):
        waiting = [asyncio.ensure_future(client.post(DRAW, json=ONE)) for _ in range(2)]
        await until(lambda: len(service.line) == 2)
        refused = await client.post(DRAW, json=ONE)
        service.start()
        return refused, await asyncio.gather(*waiting), await client.post(DRAW, json=ONE)

    with running(models, queue=2, draws=False) as service:
        refused, waiting, later = asked(service, three)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert (error_of(refused)["type"], error_of(refused)["code"]) == ("rate_limit_error", "queue_full")
    assert [answer.status_code for answer in (*waiting, later)] == [200] * 3
    assert count_of(service, "vargen_refused_total") == 1


def test_more_images_than_the_queue_holds_are_a_bad_request(models):
    with running(models, queue=2) as service:
        answer = asked(service, lambda client: client.post(DRAW, json=ONE | {"n": 3}))
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "n"


def test_a_service_that_stops_draws_what_it_accepted_and_refuses_the_rest(models):
    async def around_the_end(client):
        accepted = asyncio.ensure_future(client.post(DRAW, json=ONE))
        await until(lambda: len(service.line) == 1)
        before = await client.get("/ready")
        service.stop()
        refused, after = await client.post(DRAW, json=ONE), await client.get("/ready")
        service.start()
        return before, await accepted, refused, after

    with running(models, draws=False) as service:
        before, accepted, refused, after = asked(service, around_the_end)
    assert [answer.status_code for answer in (before, accepted, refused, after)] == [503, 200, 503, 503]
    assert error_of(refused)["code"] == "stopping"


class Visitor:
    """A client that can leave: it calls an application without a socket."""

    def __init__(self, service, body: dict) -> None:
        self.app, self.content, self.sent = build(service), json.dumps(body).encode(), []
        self.gone = asyncio.Event()
        self._bodies = [{"type": "http.request", "body": self.content, "more_body": False}]

    async def visit(self) -> None:
        headers = [(b"content-type", b"application/json"), (b"host", b"here")]
        scope = {"type": "http", "method": "POST", "path": DRAW, "raw_path": DRAW.encode(), "query_string": b""}
        scope |= {"headers": headers, "http_version": "1.1", "scheme": "http", "root_path": "", "asgi": {}}
        await self.app(scope, self._receive, self._send)

    async def _receive(self):
        if self._bodies:
            return self._bodies.pop()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message) -> None:
        self.sent.append(message)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_gives_up_its_place(models, stream):
    async def leave(service):
        visitor = Visitor(service, ONE | {"stream": stream})
        visiting = asyncio.ensure_future(visitor.visit())
        await until(lambda: len(service.line) == 1)
        visitor.gone.set()
        await visiting
        return len(service.line)

    with running(models, draws=False) as service:
        assert asyncio.run(leave(service)) == 0
        assert count_of(service, "vargen_abandoned_total") == 1
        assert count_of(service, "vargen_images_total") == 0


@pytest.mark.parametrize(
    ("sent", "abandoned"),
    [(0, 1), (1, 1), (3, 0)],
    ids=["before it begins", "at the first preview", "at the whole image"],
)
def test_a_stream_whose_client_cannot_be_reached_gives_up_its_place_and_is_counted_once(models, sent, abandoned):
    async def leave(service):
        visitor = Visitor(service, ONE | {"stream": True, "partial_images": 2})

        async def send(message):
            if len(visitor.sent) == sent:
                raise OSError("the connection is closed")
            visitor.sent.append(message)

        visitor._send = send
        with contextlib.suppress(OSError, ClientDisconnect):
            await visitor.visit()
        return len(service.line)

    with running(models, draws=sent > 0) as service:
        assert asyncio.run(leave(service)) == 0
        assert count_of(service, "vargen_abandoned_total") == abandoned


@pytest.mark.parametrize("stays", [False, True], ids=["all leave", "one stays"])
def test_a_batch_ends_at_its_next_layer_once_all_of_it_have_left(models, stays):
    """The first layer of the drawing waits until the client has gone."""
    begun, left, layers = Event(), Event(), []

    def layer(*_):
        layers.append(1)
        begun.set()
        assert left.wait(60)

    async def leave(service):
        visitor = Visitor(service, ONE)
        visits = [asyncio.ensure_future(visitor.visit())]
        await until(lambda: len(service.line) == 1)
        async with client_of(service) as client:
            if stays:
                visits.append(asyncio.ensure_future(client.post(DRAW, json=ONE)))
                await until(lambda: len(service.line) == 2)
            service.start()
            await until(begun.is_set)
            visitor.gone.set()
            await visits[0]
            left.set()
            return await visits[1] if stays else await client.post(DRAW, json=ONE)

    block = models["letters"].pipe.backbone.blocks[0]
    hook = block.register_forward_pre_hook(layer)
    try:
        with running(models, draws=False) as service:
            answer = asyncio.run(leave(service))
    finally:
        hook.remove()
    scales = len(models["letters"].own_plan.schedule)
    assert len(layers) == (scales if stays else 1 + scales)
    assert pixels(answer).size == (64, 64)
    assert count_of(service, "vargen_batch_images_count") == 1


KEYS = ("first-key", "second-key")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer other-key"}, 401),
        ({"Authorization": "first-key"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Bearer sch\u00fcssel"}, 401),
        ({"Authorization": "Bearer first-key"}, 200),
        ({"Authorization": "bearer second-key"}, 200),
    ],
    ids=str,
)
def test_a_key_opens_the_api_and_health_needs_none(models, header, status):
    sent = {name: value.encode("latin-1") for name, value in header.items()}

    async def both(client):
        return await client.get("/v1/models", headers=sent), await client.get("/health")

    with running(models) as service:
        answer, health = asked(service, both, keys=KEYS)
    assert (answer.status_code, health.status_code) == (status, 200)
    if status == 401:
        assert error_of(answer)["code"] == "invalid_api_key"


@pytest.mark.parametrize(("host", "status"), [("localhost", 200), ("evil.org", 400)])
def test_a_foreign_name_of_this_machine_is_not_answered(models, host, status):
    with running(models) as service:
        answer = asked(service, lambda client: client.get("/v1/models", headers={"host": host}), hosts=["localhost"])
    assert answer.status_code == status


def test_models_are_listed_as_openai_lists_them(models):
    async def lists(client):
        return (await client.get("/v1/models")).json(), (await client.get("/v1/models/words")).json()

    with running(models) as service:
        every, one = asked(service, lists)
    assert every["object"] == "list"
    assert [model["id"] for model in every["data"]] == list(models)
    assert {model["draws"] for model in every["data"]} == {"classes", "prompts", "instructions"}
    assert one == next(model for model in every["data"] if model["id"] == "words")


@pytest.mark.parametrize(
    ("query", "labels"),
    [("", list(range(10))), ("?pattern=letter c", [2]), ("?pattern=*b", [1]), ("?model=sizes&pattern=class 4", [4])],
)
def test_classes_are_listed_by_pattern(models, query, labels):
    with running(models) as service:
        answer = asked(service, lambda client: client.get(f"/v1/classes{query}"))
    assert [row["label"] for row in answer.json()["data"]] == labels


@pytest.mark.parametrize("model", ["letters", "words", "editor", "sizes", "tokens"])
def test_every_plan_is_listed_with_its_json(models, model):
    with running(models) as service:
        rows = asked(service, lambda client: client.get(f"/v1/plans?model={model}")).json()["data"]
    assert [row["plan"] for row in rows] == [plan.to_json() for plan in models[model].plans.values()]
    assert rows[0]["plan"] == models[model].own_plan.to_json()


@pytest.mark.parametrize(
    ("path", "status", "param"),
    [
        ("/v1/models/nothing", 404, "model"),
        ("/v1/models/..%2f..%2fetc", 404, "model"),
        ("/v1/classes?model=words", 400, "model"),
        (f"/v1/classes?pattern={'a' * 301}", 400, "pattern"),
        ("/v1/plans?model=nothing", 404, "model"),
        ("/v1/nothing", 404, None),
        (DRAW, 405, None),
    ],
)
def test_what_is_not_there_is_told_in_the_form_of_an_error(models, path, status, param):
    with running(models) as service:
        answer = asked(service, lambda client: client.get(path))
    assert answer.status_code == status
    assert error_of(answer)["param"] == param


def test_metrics_count_answers_by_route_and_status(models):
    async def some(client):
        for path in ("/v1/models", "/v1/models", "/secret/1", "/secret/2"):
            await client.get(path)
        return (await client.get("/metrics")).text

    with running(models) as service:
        text = asked(service, some)
    assert 'vargen_requests_total{route="/v1/models",status="200"} 2.0' in text
    assert 'vargen_requests_total{route="other",status="404"} 2.0' in text
    assert "secret" not in text


def test_health_ends_with_the_drawing_thread(models):
    with running(models) as service:
        assert asked(service, lambda client: client.get("/health")).status_code == 200
        service.end(60)
        assert asked(service, lambda client: client.get("/health")).status_code == 503


class Item:
    """Something that waits."""

    def __init__(self, batch_key: str) -> None:
        self.batch_key = batch_key


def test_a_line_serves_the_first_and_what_goes_with_it():
    line, items = Line(room=6, batch=2), [Item(key) for key in "abaaba"]
    line.join(items)
    with pytest.raises(FullError):
        line.join([Item("c")])
    line.leave(items[2:3])
    line.close()
    with pytest.raises(ClosedError):
        line.join([Item("c")])
    batches = [[items.index(one) for one in line.next()] for _ in range(4)]
    assert batches == [[0, 3], [1, 4], [5], []]


def test_a_batch_waits_for_those_whose_requests_are_being_read(monkeypatch):
    monkeypatch.setattr(line_module, "LONGEST", 60)
    line, items = Line(room=4, batch=3), [Item("a"), Item("a")]
    with ThreadPoolExecutor(1) as pool:
        with line.expecting():
            line.join(items[:1])
            batch = pool.submit(line.next)
            time.sleep(5 * line_module.PAUSE)
            assert not batch.done()
            line.join(items[1:])
        assert batch.result(60) == items
