"""The two ways to count guidance, and the weight that plans hold."""

import pytest

from var_toolkit.guidance import counted, read_sampling
from var_toolkit.loading import skeleton

MODELS = {"stilllife-var": 0, "stilllife-hmar": 0, "stilllife-gpt": 1, "stilllife-flowar": 1}


@pytest.mark.parametrize(("name", "off"), MODELS.items())
def test_cfg_counts_as_the_authors_do_and_guidance_scale_as_diffusers_does(name, off):
    pipe = skeleton(name)
    plans = [pipe.plan(cfg=off + 0.65), pipe.plan(guidance_scale=1.65)]
    assert [plan.steps[-1].guidance for plan in plans] == [0.65, 0.65]
    assert counted(pipe.bind(plans[0])) == counted(pipe.bind(plans[1])) == {"cfg": off + 0.65, "guidance_scale": 1.65}
    for settings in ({"cfg": off}, {"guidance_scale": 1}, {"cfg": 0}, {"guidance_scale": 0}):
        assert {one.rows for one in pipe.bind(pipe.plan(**settings)).steps} == {1}


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("stilllife-gpt", {"cfg": 0.5}, "cfg is 0.5"),
        ("stilllife-var", {"cfg": -0.5}, "cfg is -0.5"),
        ("stilllife-var", {"guidance_scale": 0.5}, "guidance_scale is 0.5"),
        ("stilllife-var", {"cfg": True}, "cfg is True"),
        ("stilllife-var", {"cfg": 1.5, "guidance_scale": 2.5}, "cfg and guidance_scale"),
    ],
)
def test_a_number_that_has_no_meaning_in_its_count_is_refused_by_name(name, settings, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        skeleton(name).plan(**settings)


@pytest.mark.parametrize(("name", "off"), MODELS.items())
def test_an_older_file_counts_from_0_whatever_the_family(name, off):
    found = read_sampling({"guidance_scale": 0.65, "top_k": 5}, skeleton(name).backbone, where="model_index.json")
    assert (found.cfg, found.top_k) == (off + 0.65, 5)


def test_a_file_with_both_counts_is_refused():
    with pytest.raises(ValueError, match=r"model_index\.json.*guidance_scale"):
        read_sampling({"cfg": 1, "guidance_scale": 1}, skeleton("stilllife-var").backbone, where="model_index.json")
