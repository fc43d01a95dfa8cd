"""No request makes the server fail, nor opens anything that it names."""

import builtins
from random import Random

import pytest
from odd_requests import odd_request
from small_service import asked, count_of, running

from var_toolkit.methods import by_name, latent_search
from var_toolkit.serving.plans import OFFERED

COUNT = 300


def test_odd_requests_are_refused_and_never_fail(models, monkeypatch):
    random = Random(0)
    plans = {name: [plan.to_json() for plan in model.plans.values()] for name, model in models.items()}
    opened, real = [], builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *more, **by: opened.append(str(file)) or real(file, *more, **by))
    monkeypatch.setattr(by_name, "imported", lambda module, what: pytest.fail(f"{module} was imported for {what}"))
    monkeypatch.setattr(latent_search, "load_network", lambda folder: pytest.fail(f"{folder} was opened"))

    async def send(client):
        found = []
        for number in range(COUNT):
            method, path, how = odd_request(random, plans)
            answer = await client.request(method, path, **how)
            found.append(answer.status_code)
            assert answer.status_code < 500, f"request {number}: {method} {path} {how}: {answer.text}"
            assert answer.status_code < 400 or method == "HEAD" or answer.json()["error"]["message"]
        return found

    with running(models) as service:
        found = asked(service, send)
        assert len(service.line) == 0
    assert not [file for file in opened if "passwd" in file]
    assert len(found) == COUNT
    assert count_of(service, "vargen_images_total") >= 10  # some are odd, and can be drawn
    assert {200, 400, 404} <= {*found}


@pytest.mark.parametrize("name", ["method", "method_options", "scorer", "latent_scorer", "judge"])
def test_settings_that_name_code_or_files_are_not_offered(name):
    assert name not in OFFERED
