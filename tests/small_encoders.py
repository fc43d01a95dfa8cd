"""Tiny random encoders of transformers, with tokenizers of words, as folders."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from var_toolkit.entries import TextSource

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "cube", "sphere"]


def write_tokenizer(folder):
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    own = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **own).save_pretrained(folder)


def write_encoder(kind, folder, channels=6):
    """The folders of an encoder and its tokenizer, as a `TextSource`."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "eos_token_id": 1, "pad_token_id": 0}
    if kind == "t5":
        heads = {"d_kv": 4, "num_heads": 2, "num_layers": 1, "d_ff": 12}
        network = T5EncoderModel(T5Config(d_model=channels, **heads, **sizes))
    else:
        heads = {"num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 12}
        network = CLIPTextModel(
            CLIPTextConfig(hidden_size=channels, max_position_embeddings=8, bos_token_id=3, **heads, **sizes)
        )
    network.eval().save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "text_tokenizer")
    return TextSource(str(folder / "text_encoder"), kind, str(folder / "text_tokenizer"))


def write_clip(folder):
    """A folder with a whole CLIP: both encoders, the tokenizer and how images are read."""
    torch.manual_seed(0)
    layers = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 12}
    text = {
        "vocab_size": len(WORDS),
        "eos_token_id": 1,
        "pad_token_id": 0,
        "bos_token_id": 3,
        "max_position_embeddings": 8,
    }
    vision = {**layers, "image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config={**layers, **text}, vision_config=vision, projection_dim=6)
    CLIPModel(config).eval().save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    write_tokenizer(folder)
    return str(folder)
