"""A pipeline that reads text: prompts, features of prompts, what is refused, and how often its encoder works."""

import pytest
import torch
from small_llamagen import tiny_gpt, tiny_vq
from small_text import CHANNELS, text_pipeline

import var_toolkit
from var_toolkit.conditions.text import PromptEmbeds
from var_toolkit.pipeline import Pipeline

SETTINGS = {"cfg": 3.0, "top_k": 0, "top_p": 0.0, "output_type": "latent"}


@pytest.fixture(scope="module")
def pipe():
    return text_pipeline()


def latents(pipe, **given):
    return pipe(**{**SETTINGS, **given}).images


def test_an_image_does_not_depend_on_the_prompts_beside_it(pipe):
    both = pipe(prompt=["ab", "abcdefg"], seeds=[1, 2], **SETTINGS)
    assert (both.prompts, both.class_labels, both.seeds) == (["ab", "abcdefg"], [], [1, 2])
    for row, (text, seed) in enumerate(zip(both.prompts, both.seeds, strict=True)):
        torch.testing.assert_close(both.images[row : row + 1], latents(pipe, prompt=text, seeds=seed))


def test_features_draw_what_their_prompts_draw(pipe):
    texts, seeds = ["ab", "c"], [3, 4]
    embeds, negative = pipe.encode_prompts(texts), pipe.encode_prompts("x")
    torch.testing.assert_close(
        latents(pipe, prompt_embeds=embeds, seeds=seeds), latents(pipe, prompt=texts, seeds=seeds)
    )
    torch.testing.assert_close(
        latents(pipe, prompt_embeds=embeds, negative_prompt_embeds=negative, seeds=seeds),
        latents(pipe, prompt=texts, negative_prompt="x", seeds=seeds),
    )


@pytest.mark.parametrize("changed", [{"prompt": "ac"}, {"negative_prompt": "x"}, {"seeds": 8}, {"cfg": 1.0}], ids=str)
def test_an_image_depends_on(changed, pipe):
    given = {"prompt": "ab", "seeds": 7}
    assert not torch.equal(latents(pipe, **given), latents(pipe, **{**given, **changed}))


def test_prompts_of_an_iterator_are_taken_batch_by_batch():
    pipe, asked = text_pipeline(), []

    def endless():
        while True:
            asked.append("ab")
            yield "ab"

    stream = pipe.stream(prompt=endless(), batch_size=2, seeds=iter(range(100)), **SETTINGS)
    assert [next(stream).seeds, next(stream).seeds] == [[0, 1], [2, 3]]
    assert len(asked) == 4
    stream = pipe.stream(prompt=iter(["a", "b", "c"]), batch_size=2, **SETTINGS)
    assert [batch.prompts for batch in stream] == [["a", "b"], ["c"]]


def test_each_prompt_is_encoded_once_and_the_encoder_is_freed_before_drawing():
    pipe = text_pipeline()
    stream = pipe.stream(prompt=["a", "b", "a"], negative_prompt="b", seeds=range(3), **SETTINGS)
    assert (pipe.text_encoder.asked, pipe.text_encoder.released) == (["a", "b"], 1)
    list(stream)
    pipe(prompt="a", seeds=0, **SETTINGS)
    assert pipe.text_encoder.asked == ["a", "b"]


OTHER = PromptEmbeds(torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), encoder="another")
OWN = PromptEmbeds(torch.zeros(1, 2, CHANNELS), torch.ones(1, 2, dtype=torch.bool))
BAD = {
    "nothing": ({}, "no prompt"),
    "class": ({"class_labels": 3}, "class_labels are for models of classes"),
    "number": ({"prompt": 3}, "prompt is 3"),
    "empty": ({"prompt": []}, "prompt is empty"),
    "both": ({"prompt": "a", "prompt_embeds": OWN}, "prompt and prompt_embeds"),
    "tensor": ({"prompt_embeds": torch.zeros(1, 2, 6)}, "prompt_embeds is tensor"),
    "channels": ({"prompt_embeds": OTHER}, r"3 channels \(of another\)"),
    "negative-channels": ({"prompt": "a", "negative_prompt_embeds": OTHER}, "negative_prompt_embeds have 3"),
    "negatives": ({"prompt": ["a", "b"], "negative_prompt": ["a", "b", "c"]}, "3 negative prompts for 2"),
    "long": ({"prompt": "abcdefghi"}, "9 tokens"),
    "unreadable": ({"prompt": "a?"}, "question mark"),
    "seeds": ({"prompt": ["a", "b"], "seeds": [1]}, "1 seeds for 2 images"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_by_name(name, pipe):
    given, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        pipe.stream(**given)


@pytest.mark.parametrize(
    "given",
    [{"prompt": "a"}, {"prompt_embeds": OWN}, {"negative_prompt": "a"}, {"negative_prompt_embeds": OWN}],
    ids=str,
)
def test_a_model_of_classes_refuses_text(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))} is for models of text"):
        Pipeline(tiny_vq(), tiny_gpt())(**given)


def test_a_model_without_an_encoder_draws_from_features_alone():
    pipe = text_pipeline(text_encoder=None)
    assert latents(pipe, prompt_embeds=OWN, seeds=1).shape[0] == 1
    with pytest.raises(ValueError, match="without a text encoder"):
        pipe(prompt="a")


def test_it_has_no_classes(pipe):
    for act in (lambda: pipe.class_names, lambda: text_pipeline(class_names=["a"])):
        with pytest.raises(ValueError, match="classes"):
            act()


def test_a_saved_model_draws_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    again = var_toolkit.load(tmp_path / "model", device="cpu")
    assert again.text_encoder is None
    given = {"prompt_embeds": pipe.encode_prompts("ab"), "seeds": 5}
    torch.testing.assert_close(latents(again, **given), latents(pipe, **given))


@pytest.mark.parametrize(
    "given", [{"speculate": "jacobi", "draft_length": 4}, {"speculate": "early-exit", "exit_layers": 1}], ids=str
)
def test_speculation_reads_text_too(given, pipe):
    drawn = pipe(prompt=["ab", "c"], seeds=[1, 2], **SETTINGS, **given)
    assert drawn.speculation is not None
    assert drawn.images.isfinite().all()
    greedy = {"top_k": 1, "cfg": 3.0, "output_type": "latent", "prompt": "ab", "seeds": 1}
    torch.testing.assert_close(pipe(**greedy, **given).images, pipe(**greedy).images)
