"""Linear layers in float8 by torchao: which are quantised, what they compute, and where they are refused."""

import pytest
import torch
from torch import nn

from var_toolkit.loading import skeleton
from var_toolkit.models.layers import float8_linear, linear
from var_toolkit.models.layers.float8_linear import bytes_of, float8_missing, is_float8, quantize_to_float8
from var_toolkit.models.layers.linear import Linear
from var_toolkit.precision import precision_of

CUDA = torch.device("cuda")
ERROR = 0.05  # of the norm of a result: half a step of 3 bits in each weight and input


class Blocks(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(layers), Linear(32, 32)


@pytest.fixture
def anywhere(monkeypatch):
    """Torchao takes the CPU for a device with such units, on which the products are computed more slowly."""
    monkeypatch.setattr(pytest.importorskip("torchao.quantization.quant_api"), "_check_hardware_support", str)
    monkeypatch.setattr(linear, "_onednn_takes", lambda *_: False)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("how", ["__call__", "gelu", "silu"])
@torch.inference_mode()
def test_the_result_is_near_the_wide_one(how, rows, anywhere):
    torch.manual_seed(0)
    network, x = Blocks(Linear(64, 32)).bfloat16().eval(), torch.randn(2, rows, 64).bfloat16()
    wanted = getattr(network.blocks[0], how)(x)
    quantize_to_float8(network)
    found = getattr(network.blocks[0], how)(x)
    assert found.dtype == torch.bfloat16
    assert 0 < (found - wanted).norm() < ERROR * wanted.norm()
    x[:, 1:] *= 100
    assert torch.equal(getattr(network.blocks[0], how)(x)[:, :1], found[:, :1])  # no row depends on the others


def test_layers_of_blocks_are_quantised_once_and_the_rest_stays(anywhere):
    network = Blocks(Linear(64, 32), Linear(24, 8))
    quantize_to_float8(network)
    weight = network.blocks[0].weight
    assert [is_float8(part) for part in (network, *network.blocks, network.head)] == [True, True, False, False]
    assert network.head.weight.dtype == torch.float32
    assert [bytes_of(layer.weight, torch.bfloat16) for layer in network.blocks] == [64 * 32, 24 * 8 * 2]
    quantize_to_float8(network)
    assert network.blocks[0].weight is weight


def test_weights_of_a_large_model_take_about_half_of_bfloat16(anywhere):
    pipe = skeleton("var-d16")
    wide = sum(p.numel() for p in pipe.backbone.parameters())
    assert pipe.quantize("float8").precision == "float8"
    held = sum(bytes_of(p, torch.bfloat16) for p in pipe.backbone.parameters())
    assert wide < held < 1.1 * wide


def test_a_network_without_such_layers_is_refused(anywhere):
    with pytest.raises(ValueError, match="Blocks"):
        quantize_to_float8(Blocks(Linear(24, 8)))


@pytest.mark.parametrize(("device", "package", "capability", "named"), [
    ("cpu", True, (9, 0), "cpu"),
    ("cuda", False, (9, 0), "float8]"),
    ("cuda", True, (8, 0), "8.0"),
    ("cuda", True, (8, 9), None),
])  # fmt: skip
def test_what_is_missing_is_named_in_one_line(device, package, capability, named, monkeypatch):
    monkeypatch.setattr(float8_linear, "find_spec", lambda _: package or None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    told = float8_missing(torch.device(device))
    assert ("float8" in precision_of("auto", CUDA).why) == (package and capability >= (8, 9))
    if named is None:
        assert told is None
        assert precision_of("float8", CUDA).wide == torch.bfloat16
        return
    assert named in told
    assert "\n" not in told
    with pytest.raises(ValueError, match="float8"):
        precision_of("float8", torch.device(device))


@pytest.mark.parametrize("what", [
    lambda pipe, folder: pipe.to(torch.float32),
    lambda pipe, folder: pipe.save_pretrained(folder / "model"),
    lambda pipe, folder: pipe.quantize("int8"),
], ids=["moved", "saved", "int8"])  # fmt: skip
def test_a_model_in_float8_stays_what_and_where_it_is(what, anywhere, tmp_path):
    with pytest.raises(ValueError, match="float8"):
        what(skeleton("var-d16").quantize("float8"), tmp_path)
    assert not list(tmp_path.iterdir())
