"""Text encoders of transformers: T5 and the text half of CLIP, loaded at the first prompt.

Letters: B prompts, T text tokens, C channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from var_toolkit.conditions.prompt_embeds import PromptEmbeds
from var_toolkit.devices import find_device
from var_toolkit.entries import TextSource

EXTRA = 'pip install "var-toolkit[text]"'
NETWORKS_OF = {"t5": "T5EncoderModel", "clip": "CLIPTextModel"}
BITS = (8, 16, 32)
WHAT = "text encoder"


class TransformersEncoder:
    """The encoder that a `TextSource` names, for prompts of at most `longest` tokens.

    On CUDA it computes in bfloat16, elsewhere in float32. ValueError of one line, at the first prompt, if transformers
    or the files are missing.
    """

    def __init__(self, told: TextSource, longest: int) -> None:
        self.told, self.longest = told, longest
        self.name, self.license = told.source, told.license
        self._device: torch.device | None = None  # of its own
        self._other = torch.device("cpu")  # that of the model
        self._bits: int | None = None
        self._loaded: tuple[Any, Any] | None = None  # the tokenizer and the network

    def __repr__(self) -> str:
        return f"TransformersEncoder({self.told.source!r}, at most {self.longest} tokens)"

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device or self._other

    def place(self, device: str | None = None, bits: int | None = None) -> TransformersEncoder:
        """Give it a device of its own, and weights of 8, 16 (bfloat16) or 32 bits. ValueError if it cannot be."""
        if bits not in (None, *BITS):
            raise ValueError(f"text_bits is {bits}; it must be {', '.join(map(str, BITS[:-1]))} or {BITS[-1]}")
        self._device, self._bits = None if device is None else find_device(device), bits
        self.release()
        return self

    def to(self, device: torch.device | str) -> TransformersEncoder:
        """Follow a model to its device, unless it has one of its own."""
        if torch.device(device).type != "meta":
            self._other = torch.device(device)
            if self._device is None:
                self.release()
        return self

    def release(self) -> None:
        """Free tokenizer and weights until the next prompt."""
        self._loaded = None

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError if transformers is missing; it can read any prompt."""
        if find_spec("transformers") is None:
            raise ValueError(f"the text encoder {self.name} needs transformers: {EXTRA}")

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeds:
        """The features of prompts; what exceeds the longest is cut off, and a warning says so."""
        self.check(prompts)
        if self._loaded is None:
            self._loaded = self._load()
        tokenizer, network = self._loaded
        texts = [text.lower().strip() for text in prompts] if self.told.lowercase else list(prompts)
        ids = tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        if long := [text for text, found in zip(texts, ids, strict=True) if len(found) > self.longest]:
            warnings.warn(f"a prompt is cut after {self.longest} tokens: {long[0][:60]!r} ...", stacklevel=3)
        read = {"padding": True, "truncation": True, "max_length": self.longest, "return_tensors": "pt"}
        found = {name: tensor.to(self.device) for name, tensor in tokenizer(texts, **read).items()}
        mask_BT = found["attention_mask"]
        output = network(input_ids=found["input_ids"], attention_mask=mask_BT)
        pooled = output.pooler_output if self.told.kind == "clip" else None
        return PromptEmbeds(output.last_hidden_state, mask_BT.bool(), pooled)

    def _load(self) -> tuple[Any, Any]:
        import transformers

        kind = getattr(transformers, NETWORKS_OF[self.told.kind])
        network = read_pretrained(kind.from_pretrained, self.told.source, WHAT, dtype=self._dtype())
        words = self.told.tokenizer or self.told.source
        tokenizer = read_pretrained(transformers.AutoTokenizer.from_pretrained, words, WHAT)
        network = network.to(self.device).eval()
        return tokenizer, _in_eight_bits(network) if self._bits == 8 else network

    def _dtype(self) -> torch.dtype:
        half = self._bits in (8, 16) or (self._bits is None and self.device.type == "cuda")
        return torch.bfloat16 if half else torch.float32


def read_pretrained(open_one: Any, source: str, what: str, **options: Any) -> Any:
    """What transformers reads from a directory, or from user/name or user/name/folder of the hub.

    ValueError of one line that names `what` it was to be. Without a network the hub's local cache is read.
    """
    from var_toolkit.formats.hub import reachable

    place, folder = split_folder(source)
    offline = not Path(place).is_dir() and not reachable()
    try:
        with _quiet():
            return open_one(place, subfolder=folder, local_files_only=offline, **options)
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, ImportError) as error:
        why = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        raise ValueError(f"{what} {place}/{folder} cannot be read: {why}".replace("/ ", " ")) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log and the progress bars of transformers; our own errors say what matters."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def split_folder(source: str) -> tuple[str, str]:
    """A directory as it is, or user/name and the folder in it."""
    if Path(source).is_dir():
        return source, ""
    user, _, rest = source.partition("/")
    name, _, folder = rest.partition("/")
    return f"{user}/{name}", folder


def _in_eight_bits(network: Any) -> Any:
    """The network with the weights of its linear layers in 8 bits, by torchao, which computes so on any device."""
    if find_spec("torchao") is None:
        raise ValueError(f"text_bits 8 needs torchao: {EXTRA}")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(network, Int8WeightOnlyConfig())
    return network
