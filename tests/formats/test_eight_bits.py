"""Weights stored in eight bits."""

import pytest
import torch
from torch import Tensor

from var_toolkit.formats.directory import load_network, save_network, write_tensors
from var_toolkit.formats.eight_bits import packed, unpacked
from var_toolkit.formats.safetensors_files import read_safetensors
from var_toolkit.registry import SCALE, WEIGHTS
from var_toolkit.still_life.scene_detector import SceneDetector, SceneDetectorConfig


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    matrix = torch.randn(16, 80) * torch.logspace(-6, 3, 16).unsqueeze(1)
    return {"matrix": matrix, "kernel": torch.randn(32, 8, 3, 3), "bias": torch.randn(2000), "small": torch.randn(2, 3)}


def test_rows_are_within_half_a_step() -> None:
    given = weights()
    stored = packed(given)
    assert {name for name, tensor in stored.items() if tensor.dtype == torch.int8} == {"matrix", "kernel"}
    found = unpacked(stored, "file")
    assert found.keys() == given.keys()
    for name in ("bias", "small"):
        assert torch.equal(found[name], given[name])
    for name in ("matrix", "kernel"):
        rows, exact = found[name].flatten(1), given[name].flatten(1)
        step = exact.abs().amax(1, keepdim=True) / 127
        assert ((rows - exact).abs() <= 0.501 * step).all()


def test_rows_of_zeros_stay_zeros() -> None:
    found = unpacked(packed({"matrix": torch.zeros(64, 64)}), "file")
    assert torch.equal(found["matrix"], torch.zeros(64, 64))


@pytest.mark.parametrize(
    "broken",
    [
        {"matrix": torch.zeros(4, 4, dtype=torch.int8), "matrix" + SCALE: torch.ones(5)},
        {"matrix": torch.zeros(4, 4), "matrix" + SCALE: torch.ones(4)},
        {"other" + SCALE: torch.ones(4)},
    ],
    ids=["other-rows", "floats", "no-values"],
)
def test_scales_that_do_not_fit_are_refused(broken: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=SCALE) as caught:
        unpacked(broken, "file")
    assert "\n" not in str(caught.value)


def test_a_network_is_read_from_eight_bits(tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    network = SceneDetector(SceneDetectorConfig((8, 16, 16, 16))).eval()
    save_network(network, tmp_path / "it")
    file = tmp_path / "it" / WEIGHTS
    before = file.stat().st_size
    write_tensors(file, packed(read_safetensors(file)))
    assert file.stat().st_size < 0.5 * before
    images = torch.rand(1, 3, 32, 32)
    exact, found = network(images).presence, load_network(tmp_path / "it")(images).presence  # type: ignore[attr-defined]
    assert 0 < (exact - found).abs().max() < 0.1
