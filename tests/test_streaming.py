"""Batches that are yielded as they are finished."""

import gc
import weakref
from itertools import count, repeat

import numpy as np
import pytest
import torch
from PIL import Image

from var_toolkit import streaming
from var_toolkit.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipe(small_tokenizer, small_var) -> Pipeline:
    return Pipeline(small_tokenizer, small_var)


@pytest.fixture
def stopped(monkeypatch):
    """Drawing that is interrupted in its third batch."""
    calls, whole = count(1), streaming.decode

    def decode(*args, **kwargs):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(streaming, "decode", decode)


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
def test_the_batches_of_a_stream_are_those_of_a_call(pipe, kind):
    asked = {"class_labels": [3, 7, 3], "seeds": [0, 1, 2], "batch_size": 2, "output_type": kind}
    whole, parts = pipe(**asked), list(pipe.stream(**asked))
    assert [part.class_labels for part in parts] == [[3, 7], [3]]
    assert [part.seeds for part in parts] == [[0, 1], [2]]
    images = [np.asarray(image) for part in parts for image in part.images]
    np.testing.assert_array_equal(np.stack(images), np.stack([np.asarray(image) for image in whole.images]))
    assert torch.equal(whole.latents, torch.cat([part.latents for part in parts]))
    for k, tokens in enumerate(whole.tokens):
        assert torch.equal(tokens, torch.cat([part.tokens[k] for part in parts]))
    assert whole.forward_passes == sum(part.forward_passes for part in parts)


def test_a_stream_refuses_what_does_not_fit_before_the_first_batch_is_asked_for(pipe):
    with pytest.raises(ValueError, match="class 10"):
        pipe.stream([3, 10])
    with pytest.raises(ValueError, match="from_scale is 99"):
        pipe.stream_vary(Image.new("RGB", (64, 64)), 99)
    with pytest.raises(TypeError, match="return_dict"):
        pipe.stream([3], return_dict=False)


def test_labels_and_seeds_may_be_endless_and_are_taken_batch_by_batch(pipe):
    stream = pipe.stream(repeat(3), seeds=count(5), batch_size=2)
    assert [next(stream).seeds, next(stream).seeds] == [[5, 6], [7, 8]]
    short = pipe.stream(iter([3, 4, 5]), seeds=[0, 1], batch_size=2)
    assert next(short).class_labels == [3, 4]
    with pytest.raises(ValueError, match="0 seeds for 1"):
        next(short)


def test_a_call_checks_the_labels_of_an_iterator_before_it_draws(pipe, stopped):
    with pytest.raises(ValueError, match="class 10"):
        pipe(iter([3, 3, 3, 10]), batch_size=1)


def test_a_stream_does_not_hold_the_batches_that_it_has_yielded(pipe):
    stream = pipe.stream([3] * 4, seeds=range(4), batch_size=1, output_type="pt")
    held = [weakref.ref(batch.images) for batch in stream]
    gc.collect()
    assert [one() is None for one in held[:-1]] == [True] * 3


def test_batches_before_an_interruption_are_there(pipe, stopped):
    stream = pipe.stream([3] * 4, seeds=range(4), batch_size=1)
    assert [next(stream).seeds, next(stream).seeds] == [[0], [1]]
    with pytest.raises(KeyboardInterrupt):
        next(stream)


def test_an_image_is_prepared_once_for_all_batches(pipe, monkeypatch):
    encoded = []
    whole = Pipeline._tokens
    monkeypatch.setattr(Pipeline, "_tokens", lambda self, *asked: encoded.append(1) or whole(self, *asked))
    image, asked = Image.new("RGB", (64, 64), "red"), {"seeds": range(3), "batch_size": 1, "output_type": "pt"}
    edited = list(pipe.stream_edit(image, (8, 8, 16, 16), [3] * 3, **asked))
    varied = list(pipe.stream_vary(image, 2, [3] * 3, **asked))
    assert (len(edited), len(varied), len(encoded)) == (3, 3, 2)
    torch.testing.assert_close(
        torch.cat([batch.images for batch in edited]), pipe.edit(image, (8, 8, 16, 16), [3] * 3, **asked).images
    )
    torch.testing.assert_close(
        torch.cat([batch.images for batch in varied]), pipe.vary(image, 2, [3] * 3, **asked).images
    )
