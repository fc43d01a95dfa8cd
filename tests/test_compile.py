"""Compiled passes draw the same tokens, with one graph for each scale and each number of rows, and none for a token."""

from copy import deepcopy
from dataclasses import replace

import pytest
import test_on_fake_cuda as families
import torch
import torch._inductor.config
from conftest import small_var_network
from golden.cases import fill
from small_flowar import tiny_kl
from small_mar import tiny_mar_config
from torch._dynamo.utils import counters

from var_toolkit.core.compiled import Compiler
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import Group
from var_toolkit.models.layers.int8_conv import Int8Conv2d, has_int8_convolutions
from var_toolkit.models.mar import MAR
from var_toolkit.pipeline import Pipeline


@pytest.fixture(autouse=True)
def no_graphs():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def graphs() -> int:
    """How many graphs were made; ends the test if a pass was cut into several."""
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


def on_cpu(name, monkeypatch):
    """A run of a small network of a family, and a request for two images."""
    monkeypatch.setattr(families, "on_cuda", lambda make, device=None: fill(make()).eval())
    monkeypatch.setattr(families, "CUDA", torch.device("cpu"))
    run = families.PLANS[name]()
    of_text = name in families.OF_TEXT or name in ("controlar", "varedit")
    asked = families.prompts() if of_text else torch.tensor([1, 2])
    return run, families.with_image(run, asked) if name in families.OF_IMAGES else asked


# Tracing takes seconds, so a scale and a token stand for the others in a fast run.
FAMILIES = [pytest.param(name, marks=() if name in ("var", "gpt") else pytest.mark.slow) for name in families.PLANS]


def expected(run) -> int:
    """One graph for each step that is compiled: of tokens one after another for each number of rows."""
    return sum(one.sparse is None and not isinstance(one.step.places, Group) for one in run.steps)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_draws_the_same_tokens_with_one_graph_for_each_step(name, monkeypatch):
    run, asked = on_cpu(name, monkeypatch)
    compiled = replace(run, compiler=Compiler("eager"))
    wanted = decode(run, asked, Noise([0, 1]))
    found = decode(compiled, asked, Noise([0, 1]))
    assert all(map(torch.equal, found.tokens, wanted.tokens))
    assert graphs() == expected(run)
    other = decode(compiled, asked, Noise([2, 3]))
    assert all(map(torch.equal, other.tokens, decode(run, asked, Noise([2, 3])).tokens))
    assert graphs() == expected(run)


def test_more_images_make_graphs_of_their_own_and_those_of_fewer_stay(monkeypatch):
    run, _ = on_cpu("var", monkeypatch)
    compiled = replace(run, compiler=Compiler("eager"))
    for labels in ([1, 2], [1, 2, 3], [4, 1]):
        decode(compiled, torch.tensor(labels), Noise(range(len(labels))))
    assert graphs() == 2 * expected(run)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_pipeline_compiles_its_decoder_too_unless_it_is_quantised(precision, small_tokenizer):
    pipe = Pipeline(deepcopy(small_tokenizer), small_var_network(depth=1))
    pipe = pipe.quantize() if precision == "int8" else pipe
    wanted = pipe(3, seeds=0, output_type="pt")
    found = pipe.pack().compile("eager")(3, seeds=0, output_type="pt")
    assert all(map(torch.equal, found.tokens, wanted.tokens))
    torch.testing.assert_close(found.images, wanted.images, atol=1e-5, rtol=0)
    assert graphs() == len(pipe.backbone.scales) + (precision == "float32")
    assert not any(tensor.is_mkldnn for tensor in pipe.pack().backbone.parameters())


def test_convolutions_that_are_quantised_after_compiling_are_packed(small_tokenizer):
    pipe = Pipeline(deepcopy(small_tokenizer), small_var_network(depth=1)).compile("eager").quantize().pack()
    found = [layer for layer in pipe.tokenizer.decoder.modules() if isinstance(layer, Int8Conv2d)]
    assert found
    assert all(layer.weight.is_mkldnn == has_int8_convolutions() for layer in found)


@pytest.mark.slow
def test_what_torch_compiles_on_this_processor_draws_the_same_tokens(small_tokenizer):
    pipe = Pipeline(small_tokenizer, small_var_network(depth=1))
    wanted = pipe(3, seeds=0, output_type="pt")
    found = pipe.compile()(3, seeds=0, output_type="pt")
    assert all(map(torch.equal, found.tokens, wanted.tokens))
    torch.testing.assert_close(found.images, wanted.images, atol=1e-4, rtol=0)


def test_groups_of_tokens_are_not_compiled():
    pipe = Pipeline(tiny_kl(3), MAR(tiny_mar_config()))
    with pytest.raises(ValueError, match=r"MAR.*groups"):
        pipe.compile()


def test_without_a_compiler_of_cpp_the_error_says_so(small_tokenizer, small_var):
    missing = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with missing, pytest.raises(ValueError, match=r"g\+\+"):
        Pipeline(small_tokenizer, small_var).compile()
