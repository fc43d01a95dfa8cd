"""Random weights, with which speed is measured without a download."""

import pytest
import torch

from var_toolkit.evaluation.bench.random_weights import random_pipeline
from var_toolkit.evaluation.bench.rounds import size_of
from var_toolkit.evaluation.bench.table import Row


@pytest.mark.parametrize("name", ["stilllife-var-small", "stilllife-var"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_weights_draw_numbers_and_are_the_same_every_time(name, dtype):
    one, other = (random_pipeline(name, device="cpu", dtype=dtype) for _ in range(2))
    for a, b in zip(one.backbone.parameters(), other.backbone.parameters(), strict=True):
        assert torch.equal(a, b)
    assert one.dtype == dtype
    assert one.tokenizer.quantize.embedding.weight.dtype == torch.float32
    assert not one.backbone.training
    drawn = one([3, 7], seeds=[0, 1], output_type="pt")
    assert drawn.images.isfinite().all()
    assert len(drawn.tokens[-1].unique()) > 20
    assert len(one.backbone.head.weight.unique(dim=0)) == len(one.backbone.head.weight)


def test_random_weights_of_a_published_size_need_no_download(monkeypatch):
    def no_download(*given, **named):
        raise AssertionError("random weights were downloaded")

    monkeypatch.setattr("var_toolkit.formats.hub.download", no_download)
    pipe = random_pipeline("var-d16", device="cpu", dtype=torch.bfloat16)
    assert sum(p.numel() for p in pipe.backbone.parameters()) == size_of(Row("a", "var-d16")).parameters > 3e8
