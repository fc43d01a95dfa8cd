"""The pipeline: a tokenizer and a backbone that are loaded, called and saved together.

pipe = var_toolkit.load("stilllife-var")
pipe(class_labels=[207, "red sphere on sand"], seeds=[0, 1]).images[0]
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from var_toolkit.best_of import best_of
from var_toolkit.conditions.class_names import ClassNames, class_names, kept
from var_toolkit.conditions.text import PromptCache, PromptEmbeds, TextEncoder, TextInput, listed_texts, text_of
from var_toolkit.core.bind import Run, bind
from var_toolkit.core.compiled import Compiler, require_compilable, require_cpp
from var_toolkit.core.engine import start_of
from var_toolkit.core.finite import require_finite, require_fit
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import BACKBONE, DRAFT, Plan
from var_toolkit.core.preserved import (
    Preserved,
    preserved_before,
    preserved_outside,
    require_scale,
)
from var_toolkit.core.schedule import Schedule
from var_toolkit.default_plans import (
    default_plan,
    require_masked_passes,
    schedule_of,
    with_fewer_tokens,
    with_subnet,
)
from var_toolkit.devices import destination
from var_toolkit.editing import as_image, on_canvas, prepare, require_places
from var_toolkit.formats.facts import Facts
from var_toolkit.formats.peft_files import read_adapter
from var_toolkit.formats.small_decoders import read_decoder
from var_toolkit.guidance import with_cfg
from var_toolkit.image_conditions import control_square, edits, require_image
from var_toolkit.images import Given, as_output, given_square, middle_square
from var_toolkit.loaded_adapters import LoadedAdapters
from var_toolkit.methods.by_name import apply_method
from var_toolkit.methods.collaborative import refiner_role
from var_toolkit.methods.latent_search import latent_search, read_scorer
from var_toolkit.methods.speculative.settings import DraftModel, speculative
from var_toolkit.models.layers.float8_linear import is_float8, quantize_to_float8
from var_toolkit.models.layers.int8_conv import pack_convolutions, quantize_convolutions
from var_toolkit.models.layers.int8_layer import is_quantized
from var_toolkit.models.layers.int8_linear import has_blocks, quantize_linears
from var_toolkit.models.layers.linear import pack_linears, unpack_linears
from var_toolkit.output import PipelineOutput, joined
from var_toolkit.precision import EIGHT_BITS, require_eight_bits
from var_toolkit.registry import Sampling
from var_toolkit.saving import parts, push, save
from var_toolkit.setting_table import SETTINGS, FewerSettings, SearchSettings, Settings, SpeculationSettings
from var_toolkit.settings import Drawing, Labels, checked_settings, listed, require_kind
from var_toolkit.signatures import show_keywords
from var_toolkit.streaming import batches, chosen_plan

if TYPE_CHECKING:
    from PIL.Image import Image

    from var_toolkit.formats.fitting import AnyTokenizer
    from var_toolkit.tokenizers.small_decoder import SmallDecoder


class Pipeline:
    """A tokenizer and a backbone that draw images of classes, or of what a prompt says.

    `sampling` holds the default settings. `class_names` are a name for each label in order, or "imagenet" or
    "still-lifes" for the names of these data sets, as is `data_set`; they are saved with the model. With a `refiner`,
    itself a pipeline on the same tokenizer, the backbone draws the first `draft_scales` scales, the refiner's the rest.
    A `draft_model` drafts where the setting `speculate` asks for it. `facts` say where the weights come from. A
    `text_encoder` reads the prompts of a backbone that has `text`; it may be missing where features are given instead.
    """

    def __init__(
        self,
        tokenizer: AnyTokenizer,
        backbone: Any,
        sampling: Sampling | None = None,
        class_names: str | Iterable[str] | None = None,
        *,
        data_set: str | None = None,
        refiner: Pipeline | None = None,
        draft_scales: int = 0,
        draft_model: DraftModel | None = None,
        facts: Facts | None = None,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.backbone = backbone
        self.sampling = with_cfg(sampling or Sampling(), backbone)
        if class_names is not None and data_set is not None:
            raise ValueError(f"class_names and data_set {data_set!r} both name the classes; give one of them")
        named = data_set if class_names is None else class_names
        if self.text is not None and named is not None:
            raise ValueError(f"{type(backbone).__name__} reads text; it has no classes to name")
        self.named = None if self.text is not None else kept(named, backbone.config.num_classes)
        self.text_encoder, self._prompts = text_encoder, PromptCache()
        self.refiner, self.draft_scales = refiner, draft_scales
        self.draft_model = draft_model
        self.frequent_codes: tuple[int, ...] | None = None  # the most frequent first, where the model's files tell
        self._scorers: dict[str, torch.nn.Module] = {}
        self.small_decoder: SmallDecoder | None = None
        self.compiler: Compiler | None = None
        self.facts = facts or Facts()
        self._adapters: LoadedAdapters | None = None

    def __repr__(self) -> str:
        networks = " + ".join(
            f"{type(each).__name__} {each.config.depth} x {each.config.embed_dim}" for each in self.backbones
        )
        side, tokenizer = self.tokenizer.image_side, type(parts(self)["tokenizer"]).__name__
        what = f"{self.backbone.config.num_classes} classes" if self.text is None else "text"
        return f"Pipeline({networks}, {tokenizer}, {what}, {side} x {side} pixels, {self.device}, {self.precision})"

    @property
    def backbone(self) -> Any:
        """The transformer; with a refiner, the one that draws the first scales."""
        return self._backbone

    @backbone.setter
    def backbone(self, network: Any) -> None:
        # Decoding calls the layers of a backbone, never `forward`, which is all that torch.compile would change.
        self._backbone = getattr(network, "_orig_mod", network)
        if self._backbone is not network:
            warnings.warn(
                "torch.compile of a backbone has no effect on decoding, so it was undone; call pipe.compile()",
                stacklevel=2,
            )

    @property
    def text(self) -> TextInput | None:
        """The text that the model reads; None for a model of classes."""
        return text_of(self.backbone)

    @property
    def class_names(self) -> ClassNames:
        """The names of the classes. ValueError for a model of text."""
        if self.text is not None:
            raise ValueError(f"{type(self.backbone).__name__} has no classes: it draws what a prompt says")
        return class_names(self.named, self.backbone.config.num_classes)

    @property
    def data_set(self) -> str | None:
        """The data set whose classes the labels are, "imagenet" or "still-lifes", or None."""
        return self.named if isinstance(self.named, str) else None

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.backbone.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the networks, and of a quantised backbone all that is not quantised."""
        return next(self.backbone.parameters()).dtype

    @property
    def precision(self) -> str:
        """The precision of the backbone by name: "int8" or "float8" if it is quantised, else its dtype."""
        if is_float8(self.backbone):
            return "float8"
        return "int8" if is_quantized(self.backbone) else str(self.dtype).removeprefix("torch.")

    def to(
        self,
        *places: torch.device | str | int | torch.dtype | None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Pipeline:
        """Move the networks, in place, to a device, a dtype or both: `to("cuda", torch.bfloat16)`, `to(torch.float32)`.

        The quantiser of a codebook stays in float32 whatever the dtype. ValueError, before anything is moved, if
        weights would become infinite in the dtype, and in float8, which stays where it is. Plans made before still fit:
        they hold the same networks.
        """
        device, dtype = destination(*places, device, dtype)
        if any(map(is_float8, self.networks)):
            raise ValueError("a model in float8 is not moved; load it again with another device or dtype")
        if device is not None and any(map(is_quantized, self.networks)):
            require_eight_bits("int8", device)
        for network in self.networks:
            require_fit(network.state_dict(), dtype, type(network).__name__)
        self.tokenizer.place(device, dtype)
        for network in [*self.networks, *([self.small_decoder] if self.small_decoder else [])]:
            network.to(device=device, dtype=dtype)
        if self.text_encoder is not None and device is not None:
            self.text_encoder.to(device)
        return self

    def quantize(self, precision: str = "int8") -> Pipeline:
        """Compute the transformer blocks (int8: and the decoder) in 8 bits from here on, in place: for inference only.

        Linear layers of the blocks have weights with a scale for each output channel, and inputs with one for each
        token; so do convolutions of the tokenizer's decoder, with inputs scaled for each image. Heads, norms,
        embeddings, the encoder, and the first and the last convolution keep their dtype. Saved so, a model is loaded
        so. "float8" is for CUDA and needs torchao: linear layers alone, and the model is not moved or saved after that.
        ValueError for another precision, for a device that cannot compute in it, for a missing package, for a model
        that is in the other one, and for a network in which no layer can be quantised.
        """
        if precision not in EIGHT_BITS:
            raise ValueError(f"precision is {precision!r}; networks can be quantised to {' or '.join(EIGHT_BITS)}")
        require_eight_bits(precision, self.device)
        if self.precision in EIGHT_BITS and self.precision != precision:
            raise ValueError(f"the model is in {self.precision}; load one in float32 or bfloat16 to use {precision}")
        quantize = quantize_linears if precision == "int8" else quantize_to_float8
        for network in self.backbones:
            quantize(network)
        if self.draft_model is not None and has_blocks(self.draft_model.network):
            quantize(self.draft_model.network)
        if precision == "int8":
            quantize_convolutions(parts(self)["tokenizer"])
        return self

    def pack(self) -> Pipeline:
        """On the CPU, pack linear layers, and convolutions in 8 bits, for oneDNN, in place: faster, after a moment.

        `to`, saving and copying undo it; training a packed backbone begins with `backbone.train()`. After `compile`
        linear layers stay as they are, since the compiler has layouts of its own.
        """
        for network in self.networks if self.compiler is None else ():
            pack_linears(network)
        pack_convolutions(self.tokenizer)
        return self

    def compile(self, backend: str | Callable[..., Any] = "inductor") -> Pipeline:
        """Compile the passes of the transformer and the decoder of the tokenizer by torch.compile, in place.

        Each scale gets a graph for each number of rows when it is drawn for the first time, which takes seconds; single
        tokens share one. `backend` is torch's. Speculation, masked passes, passes that prune tokens or evict keys, and
        on the CPU a decoder in 8 bits run as they are. ValueError for a network that draws groups of tokens, whose
        steps differ too much, and on the CPU without a C++ compiler.
        """
        for network in self.backbones:
            require_compilable(network)
        if backend == "inductor":
            require_cpp(self.device)
        for network in self.networks:
            unpack_linears(network)
        pack_convolutions(self.tokenizer)
        self.compiler = Compiler(backend)
        return self

    def load_lora_weights(
        self, source: str | Path, adapter_name: str | None = None, *, weight: float = 1.0
    ) -> Pipeline:
        """Merge an adapter (LoRA or DoRA, a folder in peft's format) into the weights of the backbone, in place.

        Several add up, each with its weight. `save_pretrained` saves the merged model. ValueError in one line for a
        folder that is no adapter, or one that does not fit.
        """
        adapter = read_adapter(Path(source))
        loaded = self._adapters or LoadedAdapters(self.backbone)
        loaded.add(adapter_name or f"default_{len(loaded.changes)}", adapter, weight)
        self._adapters = loaded
        self.facts = self.facts.altered(f"with the adapter {Path(source).name}, weight {weight:g}")
        return self

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> Pipeline:
        """Use loaded adapters with other weights, 1 if none are given; the others have no effect.

        ValueError for a name that is not loaded.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        given = 1.0 if adapter_weights is None else adapter_weights
        weights = [given] * len(names) if isinstance(given, int | float) else list(given)
        if len(names) != len(weights):
            raise ValueError(f"adapter_weights has {len(weights)} numbers for {len(names)} adapters")
        loaded = self._adapters or LoadedAdapters(self.backbone)
        loaded.use(dict(zip(names, weights, strict=True)))
        told = ", ".join(f"{name} {weight:g}" for name, weight in zip(names, weights, strict=True))
        self.facts = self.facts.altered(f"with the adapters {told}" if names else "without adapters")
        return self

    def load_decoder(self, source: str | Path = "small") -> Pipeline:
        """Decode latents by a small decoder from here on: nearly the same images in a small part of the time.

        "small" is the one that comes with the package for this tokenizer; other sources are a name, the `final/` of a
        run of objective small-decoder, or a hub id. Like a draft model it is saved separately. ValueError in one line
        if there is none, or if it was made for another tokenizer.
        """
        self.small_decoder = read_decoder(source, self.tokenizer, self.device).to(self.device, self.dtype)
        return self

    def unload_decoder(self) -> Pipeline:
        """Decode latents by the tokenizer's own decoder again."""
        self.small_decoder = None
        return self

    @property
    def decoder(self) -> Any:
        """What decodes latents: the small decoder that was loaded, or the tokenizer."""
        return self.small_decoder or self.tokenizer

    def decode(self, latent_BChw: Tensor, noise: Noise | None = None) -> Tensor:
        """The images of latents, in [-1, 1], float32 (B, 3, h, w).

        A decoder that is a flow (D-AR) starts from the `noise` of the images, without it from that of seed 0.
        """
        decode, start = self.decoder.decode, () if noise is None else start_of(self.decoder, noise)
        # Convolutions in 8 bits quantise by numbers that the host reads on the CPU.
        if self.compiler is None or (self.device.type == "cpu" and is_quantized(self.decoder)):
            images: Tensor = decode(latent_BChw, *start)
            return images
        found: Tensor = self.compiler(decode)(latent_BChw, *start)
        return found.clone()  # the next call of a CUDA graph writes to the same memory

    @property
    def networks(self) -> list[torch.nn.Module]:
        """The backbones and the draft model."""
        return [*self.backbones, *([self.draft_model.network] if self.draft_model else [])]

    @property
    def backbones(self) -> list[Any]:
        """The backbone, and the refiner's if there is one."""
        return [self.backbone, *(self.refiner.backbones if self.refiner else [])]

    @property
    def roles(self) -> dict[str, torch.nn.Module]:
        """The networks by the roles that plans call them by: backbone, refiner, draft."""
        found: dict[str, torch.nn.Module] = {BACKBONE: self.backbone}
        if self.refiner is not None:
            found |= {refiner_role(role): network for role, network in self.refiner.roles.items()}
        return found | ({DRAFT: self.draft_model.network} if self.draft_model is not None else {})

    def encode_prompts(self, prompts: str | Sequence[str]) -> PromptEmbeds:
        """The features of prompts, on the CPU, to be given as `prompt_embeds`; each prompt is encoded once.

        The weights of the encoder are loaded at the first prompt and kept until `release_text_encoder`, which drawing
        calls once all prompts are encoded. ValueError of one line for a prompt that the encoder or the model cannot
        read.
        """
        if self.text is None:
            raise ValueError("this model draws classes; only a model of text encodes prompts")
        if self.text_encoder is None:
            raise ValueError("this model was saved without a text encoder; give prompt_embeds instead of prompts")
        embeds = self._prompts(self.text_encoder, listed_texts("prompt", prompts))
        self.text.require(embeds, "the features of the prompt")
        return embeds

    def release_text_encoder(self) -> None:
        """Free the weights of the text encoder, if it can load them again."""
        if self.text_encoder is not None:
            self.text_encoder.release()

    def bind(self, plan: Plan) -> Run:
        """The plan with the networks of this model: `run.cost()`, `print(run)`. ValueError if it does not fit."""
        scorers = {name: self._scorer(name) for name in plan.scorers}
        return bind(plan, self.roles | scorers, self.tokenizer, self.compiler, self.small_decoder)

    def _scorer(self, name: str) -> torch.nn.Module:
        """The network that scores candidates, read once. ValueError if there is none of that name."""
        if name not in self._scorers:
            self._scorers[name] = read_scorer(name)
        return self._scorers[name].to(self.device)

    def _searched(self, plan: Plan, given: Mapping[str, Any]) -> Plan:
        """The plan with the settings `candidates` and `latent_scorer`."""
        count, scorer = given.get("candidates", 1), given.get("latent_scorer")
        if count == 1:
            if scorer is not None:
                raise ValueError("latent_scorer chooses among candidates; give candidates as well, 2 or more")
            return plan
        scorer = scorer or self.sampling.latent_scorer
        if scorer is None:
            raise ValueError(
                "this model has no scorer of latents; give latent_scorer, such as the final/ of a run of "
                "stilllife-latent-scorer"
            )
        return latent_search(plan, self._scorer(scorer), candidates=count, scorer=scorer)

    def plan(self, **settings: Unpack[Settings]) -> Plan:
        """The decoding plan for some settings; those that are not given, or None, are the model's defaults.

        ValueError in one line if they do not fit the model.
        """
        if unknown := settings.keys() - SETTINGS.keys():
            raise TypeError(f"{unknown.pop()!r} is no setting; settings are {', '.join(SETTINGS)}")
        given = checked_settings(settings)
        depth: dict[str, Any] = {name: given.pop(name) for name in ("subnet", "full_scales") if name in given}
        fewer = {name: given.pop(name) for name in FewerSettings.__annotations__ if name in given}
        drafts = {name: given.pop(name) for name in SpeculationSettings.__annotations__ if name in given}
        search = {name: given.pop(name) for name in SearchSettings.__annotations__ if name in given}
        method, options = given.pop("method", None), given.pop("method_options", None)
        require_kind(self.backbones, given)
        plan = default_plan(self, given | {"schedule": schedule_of(self, given)})
        require_masked_passes(self, plan, given)
        if depth:
            given_depth = {"subnet": self.sampling.subnet, "full_scales": self.sampling.full_scales, **depth}
            plan = with_subnet(plan, **given_depth)
        plan = with_fewer_tokens(plan, fewer)
        if drafts:
            plan = speculative(plan, drafts, self)
        if "control_strength" in given:
            plan = replace(plan, control_strength=given["control_strength"])
        if method is not None:
            plan = apply_method(plan, method, options or {})
        elif options is not None:
            raise ValueError("method_options are those of a method; give method as well")
        plan = replace(self._searched(plan, search), best_of=best_of(self, search))
        self.bind(plan)  # raises ValueError if it does not fit
        return plan

    def __call__(
        self, class_labels: Labels = None, *, return_dict: bool = True, **drawing: Unpack[Drawing]
    ) -> PipelineOutput | tuple[Any]:
        """Draw one image per label, or per prompt of a model of text.

        Labels are numbers, names or synsets; None draws without a class. Each image has its own seed (63 bits) and does
        not depend on the batch. Without `seeds` they come from `generator` (one for all images, or one per image), or
        from torch's global one. The settings are those of `plan`; a `plan` that was made before replaces them. The
        callback is called after every scale of every batch. Without `return_dict` only the images are returned, in a
        tuple. ValueError, before anything is drawn, names what does not fit.
        """
        return joined(self.stream(listed(class_labels), **drawing), return_dict=return_dict)

    def stream(self, class_labels: Labels = None, **drawing: Unpack[Drawing]) -> Iterator[PipelineOutput]:
        """Draw as a call does, and yield each batch once it is finished; earlier batches are not held.

        for batch in pipe.stream(range(1000), seeds=range(1000), batch_size=50): ...

        Everything is checked before this returns, except labels, prompts and seeds of iterators, which are taken
        batch by batch and may be endless.
        """
        return batches(self, class_labels, **drawing)

    def edit(
        self,
        image: Given,
        mask: Image | Sequence[int] | None = None,
        class_labels: Labels = None,
        *,
        instruction: str | Iterable[str] | None = None,
        expand: int | Sequence[int] | None = None,
        keep_pixels: bool = False,
        return_dict: bool = True,
        **drawing: Unpack[Drawing],
    ) -> PipelineOutput | tuple[Any]:
        """Inpaint a part of an image, or outpaint with `expand`; one result per label.

        A model that edits by instructions (VAREdit) takes an `instruction`, one or several, and nothing else of these:
        the result is the whole image, edited and of its own size.

        `mask` is an image of the same size, light where it is inpainted, or a box (x, y, width, height) in pixels.
        `expand` adds pixels around the image, on all sides or (left, top, right, bottom), and draws them. The model
        sees the largest square that contains the mask, scaled to its own size, and the result is that square; outside
        the mask it is as the tokenizer reconstructs it, and differs a little near the mask. With `keep_pixels` the
        drawn part is pasted into the given image, which is unchanged outside the mask. A `control_image` shows the
        whole image, in any size but with its aspect ratio; with `expand`, the enlarged one. Labels and `drawing` are
        those of a call. ValueError, before anything is drawn, names what does not fit.
        """
        how: Any = {"instruction": instruction, "expand": expand, "keep_pixels": keep_pixels}
        return joined(self.stream_edit(image, mask, listed(class_labels), **how, **drawing), return_dict=return_dict)

    def stream_edit(
        self,
        image: Given,
        mask: Image | Sequence[int] | None = None,
        class_labels: Labels = None,
        *,
        instruction: str | Iterable[str] | None = None,
        expand: int | Sequence[int] | None = None,
        keep_pixels: bool = False,
        **drawing: Unpack[Drawing],
    ) -> Iterator[PipelineOutput]:
        """The results of `edit` batch by batch, as `stream` yields them; the image is prepared once."""
        if instruction is not None or edits(self.backbone):
            odd = mask is not None or expand is not None or keep_pixels or class_labels is not None
            return self._stream_instructed(image, instruction, odd, drawing)
        require_places(self.tokenizer)
        planned, side = self._planned(drawing)
        edit = prepare(image, mask, expand, side=side, whole=keep_pixels)
        if keep_pixels and drawing.get("output_type") == "latent":
            raise ValueError("keep_pixels pastes pixels, and output_type 'latent' has none; choose one")
        if planned.get("control_image") is not None:
            planned["control_image"] = control_square(planned["control_image"], edit.image, edit.square, side)

        def preserve(schedule: Schedule) -> Preserved:
            tokens = self._tokens(edit.square_tensor(side), schedule)
            return preserved_outside(edit.cells(schedule.finest), tokens, self.tokenizer, schedule)

        return batches(self, class_labels, preserve, edit.pasted if keep_pixels else as_output, **planned)

    def _stream_instructed(
        self, image: Given, instruction: str | Iterable[str] | None, odd: bool, drawing: Mapping[str, Any]
    ) -> Iterator[PipelineOutput]:
        """The results of an edit by instructions; `odd`: whether anything was given that such an edit does not take."""
        require_image(self.backbone, source=True, control=False)
        if odd or drawing.get("prompt") is not None:
            raise ValueError("an edit by an instruction takes neither mask, expand, keep_pixels, labels nor prompt")
        if instruction is None and drawing.get("prompt_embeds") is None:
            raise ValueError(
                "there is no instruction; say what is changed, such as instruction='make the sphere green'"
            )
        planned, side = self._planned({**drawing, "prompt": instruction})
        canvas = on_canvas(image, side)
        return batches(self, None, None, canvas.cut, lambda schedule: canvas.tensor(side)[None] * 2 - 1, **planned)

    def vary(
        self,
        image: Given,
        from_scale: int,
        class_labels: Labels = None,
        *,
        return_dict: bool = True,
        **drawing: Unpack[Drawing],
    ) -> PipelineOutput | tuple[Any]:
        """Redraw the scales of an image from `from_scale` on and preserve the coarser ones; one result per label.

        0 redraws every scale, the number of scales none. The image is cropped as in `reconstruct`, and so is a
        `control_image`, which has the aspect ratio of the image. Labels and `drawing`
        are those of a call. ValueError, before anything is drawn, names what does not fit.
        """
        return joined(self.stream_vary(image, from_scale, listed(class_labels), **drawing), return_dict=return_dict)

    def stream_vary(
        self, image: Given, from_scale: int, class_labels: Labels = None, **drawing: Unpack[Drawing]
    ) -> Iterator[PipelineOutput]:
        """The results of `vary` batch by batch, as `stream` yields them; the image is prepared once."""
        planned, side = self._planned(drawing)
        require_scale(from_scale, planned["plan"].schedule)
        whole = as_image(image, side)
        square = given_square(image, side, least=self.tokenizer.downsample)
        if planned.get("control_image") is not None:
            middle = middle_square(*whole.size)
            planned["control_image"] = control_square(planned["control_image"], whole, middle, side)

        def preserve(schedule: Schedule) -> Preserved:
            return preserved_before(from_scale, self._tokens(square, schedule), self.tokenizer, schedule)

        return batches(self, class_labels, preserve, **planned)

    def _planned(self, drawing: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """The keywords with a plan in place of the settings, and the side of the square that it draws, in pixels."""
        settings = {name: value for name, value in drawing.items() if name in Settings.__annotations__}
        rest = {name: value for name, value in drawing.items() if name not in settings}
        plan = chosen_plan(self, drawing.get("plan"), settings)
        own = {"scorer": drawing["scorer"]} if callable(drawing.get("scorer")) else {}
        return rest | own | {"plan": plan}, plan.schedule.finest * self.tokenizer.downsample

    def _tokens(self, image_3ss: Tensor, schedule: Schedule) -> list[Tensor]:
        """The token maps of one image in [0, 1]."""
        found: list[Tensor] = self.tokenizer.token_maps(image_3ss[None].to(self.device) * 2 - 1, schedule)
        return found

    def reconstruct(self, image: Given) -> Image:
        """The tokenizer's reconstruction of an image, whose centre square is scaled to the tokenizer's size.

        Takes a PIL image, a path, an array (h, w, 3) of uint8, or a tensor (3, h, w), float in [0, 1], as `edit` and
        `vary` do. ValueError for anything else, and for an image smaller than the patch of one token.
        """
        square = given_square(image, self.tokenizer.image_side, least=self.tokenizer.downsample)
        drawn = self.decode(self.tokenizer.coded(square.unsqueeze(0).to(self.device) * 2 - 1))
        return as_output(require_finite(drawn.cpu(), "the decoder's images"), "pil")[0]

    def save_pretrained(
        self, directory: Path | str, dtype: torch.dtype | None = None, *, overwrite: bool = False
    ) -> None:
        """Write a model directory in the diffusers layout, whole or not at all; a draft model is saved separately.

        ValueError if the directory exists already; `overwrite` replaces one of our models.
        """
        save(self, Path(directory), dtype, overwrite=overwrite)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        dtype: torch.dtype | None = None,
        license: str | None = None,
    ) -> str:
        """Commit the model to user/name on the hub, with a card; returns the address of the commit.

        A repository or a branch (`revision`) that does not exist is created. State the `license`, as the hub names it
        ("mit"), where the weights have none yet. A hand-written card on the hub is preserved. ValueError of one line,
        before anything is written, if the hub cannot be reached or refuses.
        """
        hub = {"private": private, "token": token, "commit_message": commit_message}
        return push(self, repo_id, dtype=dtype, license=license, revision=revision, **hub)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        tokenizer: str | Path | None = None,
        draft_model: str | Path | None = None,
        revision: str | None = None,
        device: str = "auto",
        dtype: str | torch.dtype = torch.float32,
    ) -> Pipeline:
        """The same as `load`."""
        from var_toolkit import load  # by name, since loading makes pipelines

        return load(source, tokenizer=tokenizer, draft_model=draft_model, revision=revision, device=device, dtype=dtype)


_DEFAULTS = {name: each.default for name, each in inspect.signature(batches).parameters.items()}
for _method in (
    Pipeline.__call__,
    Pipeline.stream,
    Pipeline.edit,
    Pipeline.stream_edit,
    Pipeline.vary,
    Pipeline.stream_vary,
):
    show_keywords(_method, Drawing, _DEFAULTS)
show_keywords(Pipeline.plan, Settings, {})
