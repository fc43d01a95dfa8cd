"""Exported programs compute what the modules compute that they were traced from."""

import copy
import subprocess
import sys

import pytest
import torch
from conftest import small_var_network
from small_flowar import tiny_kl
from small_llamagen import tiny_vq
from torch.testing import assert_close

from var_toolkit.conditions.condition import Condition
from var_toolkit.core.canvas import Canvas
from var_toolkit.formats import export
from var_toolkit.formats.export import export_decoder, export_step
from var_toolkit.pipeline import Pipeline

GIVEN = torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def backbone():
    return small_var_network(depth=2).eval()


def latents(tokenizer, images):
    return torch.randn(images, tokenizer.channels, *(tokenizer.scales.finest,) * 2, generator=GIVEN)


def step_inputs(backbone, scale, rows):
    """Random inputs of an exported step."""
    scales, config = backbone.scales, backbone.config
    shape = (config.depth, rows, config.num_heads, scales.offsets[scale], config.embed_dim // config.num_heads)
    length = scales.lengths[scale] if scale else 0
    return {
        "labels": torch.randint(config.num_classes + 1, (rows,), generator=GIVEN),
        "inputs": torch.randn(rows, length, config.latent_channels, generator=GIVEN),
        "keys": torch.nn.functional.normalize(torch.randn(shape, generator=GIVEN), dim=-1),
        "values": torch.randn(shape, generator=GIVEN),
    }


@torch.inference_mode()
def step_of(backbone, scale, given):
    """The same by the backbone itself, as the engine calls it."""
    rows, begin = len(given["labels"]), backbone.scales.offsets[scale]
    cache = backbone.new_cache(rows)
    for layer in range(backbone.config.depth):
        cache.append(layer, given["keys"][layer], given["values"][layer])
    cache.advance(begin)
    condition = backbone.condition(Condition(labels=given["labels"]))
    inputs = given["inputs"] if scale else None
    logits = backbone.logits(condition, backbone.hidden(condition, inputs, scales=range(scale, scale + 1), cache=cache))
    kinds = zip(*(cache.contents(layer) for layer in range(backbone.config.depth)), strict=True)
    return logits, *(torch.stack([one[:, :, begin:] for one in kind]) for kind in kinds)


@pytest.mark.parametrize("kind", [pytest.param("multi-scale", marks=pytest.mark.slow), "raster", "continuous"])
def test_an_exported_decoder_draws_the_same_images_in_any_number(kind, small_tokenizer, tmp_path):
    tokenizer = {"multi-scale": lambda: small_tokenizer, "raster": tiny_vq, "continuous": tiny_kl}[kind]()
    export_decoder(tokenizer, tmp_path / "decoder.pt2")
    program = torch.export.load(tmp_path / "decoder.pt2").module()
    for images in (1, 3):
        latent = latents(tokenizer, images)
        assert_close(program(latent=latent), tokenizer.decode(latent), atol=1e-5, rtol=1e-5)


def test_exported_steps_draw_the_tokens_of_the_engine(small_tokenizer, backbone, tmp_path):
    pipe, scales = Pipeline(small_tokenizer, backbone), backbone.scales
    drawn = pipe([3, 7], seeds=[0, 1], cfg=0.0, top_k=1, top_p=0.0)
    config, canvas = backbone.config, Canvas(small_tokenizer.pyramid, scales)
    keys = values = torch.zeros(config.depth, 2, config.num_heads, 0, config.embed_dim // config.num_heads)
    inputs = torch.zeros(2, 0, config.latent_channels)
    for scale in range(len(scales)):
        export_step(backbone, scale, tmp_path / f"{scale}.pt2")
        program = torch.export.load(tmp_path / f"{scale}.pt2").module()
        logits, *new = program(labels=torch.tensor([3, 7]), inputs=inputs, keys=keys, values=values)
        keys, values = (torch.cat((old, more), dim=3) for old, more in zip((keys, values), new, strict=True))
        tokens = logits.argmax(dim=-1)
        assert torch.equal(tokens, drawn.tokens[scale])
        canvas.add(tokens, scale)
        inputs = canvas.inputs[-1]
    assert keys.shape[3] == scales.total


@pytest.mark.parametrize("scale", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_an_exported_step_has_the_numbers_of_the_backbone_for_any_rows(backbone, scale, tmp_path):
    export_step(backbone, scale, tmp_path / "step.pt2")
    program = torch.export.load(tmp_path / "step.pt2").module()
    for rows in (1, 3):
        given = step_inputs(backbone, scale, rows)
        assert_close(program(**given), step_of(backbone, scale, given), atol=1e-5, rtol=1e-5)


def test_a_program_runs_without_this_package_and_without_the_cpu_that_traced_it(backbone, tmp_path):
    export_step(backbone, 1, tmp_path / "step.pt2")
    program = torch.export.load(tmp_path / "step.pt2")
    assert not [node for node in program.graph.nodes if "mkldnn" in str(node.target)]
    code = (
        "import sys, torch; program = torch.export.load(sys.argv[1]); "
        "print(len(list(program.graph.nodes)) > 0, 'var_toolkit' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "step.pt2")]
    assert subprocess.run(command, capture_output=True, text=True, timeout=120).stdout == "True False\n"


def test_a_model_is_left_as_it_was(small_tokenizer, backbone, tmp_path):
    pipe = Pipeline(small_tokenizer, copy.deepcopy(backbone)).pack()
    packed = [module.weight.is_mkldnn for module in pipe.backbone.modules() if hasattr(module, "pack")]
    export_step(pipe.backbone, 1, tmp_path / "a.pt2")
    assert packed == [module.weight.is_mkldnn for module in pipe.backbone.modules() if hasattr(module, "pack")]
    pipe.backbone.train()
    export_step(pipe.backbone, 1, tmp_path / "b.pt2")
    assert all(module.training for module in pipe.backbone.modules())
    given = step_inputs(backbone, 1, 2)
    programs = [torch.export.load(tmp_path / f"{name}.pt2").module()(**given) for name in "ab"]
    assert_close(*programs, atol=0, rtol=0)


@pytest.mark.slow
def test_onnx_programs_have_the_same_numbers(small_tokenizer, backbone, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")

    def numbers(path, given):
        session = runtime.InferenceSession(path)
        found = session.run(None, {one.name: given[one.name].numpy() for one in session.get_inputs()})
        return dict(zip((one.name for one in session.get_outputs()), map(torch.from_numpy, found), strict=True))

    export_decoder(small_tokenizer, tmp_path / "decoder.onnx")
    export_step(backbone, 2, tmp_path / "step.onnx")
    for count in (1, 3):
        latent = latents(small_tokenizer, count)
        images = numbers(tmp_path / "decoder.onnx", {"latent": latent})["images"]
        assert_close(images, small_tokenizer.decode(latent), atol=1e-5, rtol=1e-5)
        given = step_inputs(backbone, 2, count)
        expected = dict(zip(("logits", "new_keys", "new_values"), step_of(backbone, 2, given), strict=True))
        assert_close(numbers(tmp_path / "step.onnx", given), expected, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_exported_is_refused_in_one_line(small_tokenizer, backbone, small_hmar, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.export, "export", None)  # nothing is traced
    cases = [
        (lambda: export_decoder(small_tokenizer, tmp_path / "decoder.pt"), r"decoder\.pt must end in \.pt2 or \.onnx"),
        (lambda: export_decoder(small_tokenizer, tmp_path / "a.pt2" / "b.pt2"), r"a\.pt2"),
        (lambda: export_step(small_hmar, 0, tmp_path / "a.pt2"), "the backbone is a HMAR"),
        (lambda: export_step(backbone, 4, tmp_path / "a.pt2"), "scale is 4; this backbone has the scales 0 to 3"),
    ]
    (tmp_path / "a.pt2").touch()
    for asked, words in cases:
        with pytest.raises(ValueError, match=words):
            asked()
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'var-toolkit\[onnx\]', or write a \.pt2"):
        export_decoder(small_tokenizer, tmp_path / "a.onnx")
    monkeypatch.setattr(export, "find_spec", lambda name: name)
    monkeypatch.setattr(export, "LARGEST_ONNX", 1000)
    with pytest.raises(ValueError, match="an ONNX file at most 2"):
        export_decoder(small_tokenizer, tmp_path / "a.onnx")
