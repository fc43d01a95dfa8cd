"""Every family decodes, edits, speculates, learns and is scored on a CUDA device that is not there.

Plain decoding never makes the host wait, speculation once a round.
FakeTensorMode computes shapes and devices alone, so a tensor left on the host is an error, as on a real GPU.
"""

from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from runs import code_of, rebound, run_with, variant_of
from small_dar import tiny_dar, tiny_flow
from small_flowar import tiny_config, tiny_kl
from small_llamagen import tiny_gpt_config, tiny_vq
from small_mar import tiny_acdit_config, tiny_himar_config, tiny_mar_config, tiny_xar_config
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch_fidelity import feature_extractor_inceptionv3 as inception

from var_toolkit.conditions.condition import of_labels
from var_toolkit.conditions.images import WithImage
from var_toolkit.conditions.text import PromptEmbeds, Prompts
from var_toolkit.core.bind import bind
from var_toolkit.core.compiled import Compiler
from var_toolkit.core.engine import decode
from var_toolkit.core.finite import FiniteCheck
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import BACKBONE, plan_of
from var_toolkit.core.preserved import preserved_before
from var_toolkit.core.schedule import Schedule
from var_toolkit.evaluation import extractors
from var_toolkit.heads.diffusion import losses as losses_of
from var_toolkit.heads.flow import Flow
from var_toolkit.kernels import pyramid_attention
from var_toolkit.loading import skeleton
from var_toolkit.methods.distilled import in_steps
from var_toolkit.methods.fewer_tokens import fastvar, scalekv
from var_toolkit.methods.latent_search import latent_search
from var_toolkit.methods.speculative import as_plain, drafts, settings, verify
from var_toolkit.methods.speculative.judge import Judged
from var_toolkit.methods.speculative.settings import DraftModel, speculative
from var_toolkit.models import dar
from var_toolkit.models import star as star_models
from var_toolkit.models.acdit import ACDiT
from var_toolkit.models.car import CAR, CARConfig
from var_toolkit.models.controlar import ControlAR, ControlARConfig
from var_toolkit.models.distilled_llamagen import DistilledRasterGPT, DistilledRasterGPTConfig
from var_toolkit.models.distilled_var import DistilledVAR, DistilledVARConfig
from var_toolkit.models.draft_heads import EagleHead, EagleHeadConfig
from var_toolkit.models.ecar import ECAR, ECARConfig
from var_toolkit.models.flexvar import FlexVAR, FlexVARConfig
from var_toolkit.models.flowar import FlowAR
from var_toolkit.models.himar import HiMAR, Masked
from var_toolkit.models.hmar import HMAR, HMARConfig
from var_toolkit.models.infinity import Infinity, InfinityConfig
from var_toolkit.models.latent_scorer import LatentScorer, LatentScorerConfig
from var_toolkit.models.layers import linear, raster_positions
from var_toolkit.models.layers.float8_linear import is_float8, quantize_to_float8
from var_toolkit.models.layers.int8_linear import quantize_linears
from var_toolkit.models.layers.linear import Linear
from var_toolkit.models.llamagen import RasterGPT
from var_toolkit.models.llamagen_t2i import TextRasterGPT, TextRasterGPTConfig
from var_toolkit.models.mar import MAR
from var_toolkit.models.medusa_heads import HydraHeads, MedusaHeads, MedusaHeadsConfig
from var_toolkit.models.star import STAR, STARConfig
from var_toolkit.models.var import VAR, VARConfig
from var_toolkit.models.varedit import VAREdit, VAREditConfig
from var_toolkit.models.xar import XAR
from var_toolkit.pipeline import Pipeline
from var_toolkit.tokenizers.bsq import MultiScaleBSQ, MultiScaleBSQConfig
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ, MultiScaleVQConfig

SMALL = {"num_classes": 5, "latent_channels": 8, "patch_nums": (1, 2, 3), "vocab_size": 16}
CUDA = torch.device("cuda", 0)
WAITS = (
    "_local_scalar_dense",
    "item",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "unique",
    "repeat_interleave.Tensor",
)


class Watch(TorchDispatchMode):
    """Counts what makes the host wait, and copies between devices."""

    def __init__(self):
        super().__init__()
        self.waits, self.copies, self.operators = Counter(), Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, self.operators = str(func).removeprefix("aten."), self.operators + 1
        if waits(name, args):
            self.waits[name] += 1
        found = self.answer(name, args) if waits(name, args) else None
        if found is None:
            found = func(*args, **(kwargs or {}))
        if name.startswith(("_to_copy", "to.", "copy_")):  # `to` is seen whole in inference mode
            source = args[1] if name.startswith("copy_") else args[0]
            if source.device.type != found.device.type:
                self.copies[f"{source.device.type} to {found.device.type}"] += 1
        if isinstance(found, FakeTensor):
            found.constant = None  # fake mode would compute with small constants in earnest, on the device too
        return found

    def answer(self, name, args):
        """What the host reads; None leaves it to fake mode, which refuses."""


def waits(name, args):
    """Whether the host waits for this operator: it reads, or the shape of what comes out depends on values."""
    masks = args[1] if name.startswith("index") and isinstance(args[1], list | tuple) else ()
    return name.startswith(WAITS) or any(each is not None and each.dtype == torch.bool for each in masks)


@contextmanager
def fake_cuda(monkeypatch):
    """A mode in which networks may be made and moved to CUDA, and nothing is computed."""
    linear._has_onednn()  # which computes, so before the mode
    Flow("heun", 2).times()
    clear_tables()
    monkeypatch.setattr(FiniteCheck, "require", lambda self: None)  # the one read at the end
    with FakeTensorMode():
        yield
    clear_tables()


def clear_tables():
    """What is made once a device must not outlive the mode, nor come from before it."""
    for table in (
        raster_positions.known_rotation,
        dar.known_rotation,
        star_models.known_rotation,
        pyramid_attention.known_mask,
        drafts._tables,
    ):
        table.cache_clear()


def on_cuda(make, device=CUDA):
    """A network whose weights are on the device, where nothing has values."""
    with unset_fake_temporarily():
        network = make()
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype, device=device)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))
    return network


def halved(network):
    """A network on the device with weights in bfloat16, in place."""
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(weight.detach().bfloat16()))


def vq():
    sizes = {"z_channels": 8, "ch": 32, "ch_mult": (1, 1), "patch_nums": (1, 2, 3), "vocab_size": 16}
    return on_cuda(lambda: MultiScaleVQ(MultiScaleVQConfig(**sizes)))


def var(depth=2):
    return on_cuda(lambda: VAR(VARConfig(depth=depth, embed_dim=16, num_heads=2, **SMALL)))


def hmar():
    return on_cuda(lambda: HMAR(HMARConfig(depth=2, embed_dim=16, num_heads=2, branch_depth=1, **SMALL)))


def flowar():
    return on_cuda(lambda: FlowAR(tiny_config()))


def flexvar(depth=2):
    sizes = {"num_classes": 5, "vocab_size": 16, "latent_channels": 4, "patch_nums": (1, 2, 3)}
    return on_cuda(lambda: FlexVAR(FlexVARConfig(depth=depth, embed_dim=16, num_heads=2, **sizes)))


def flexvar_plan():
    network = flexvar()
    plan = plan_of(network, schedule=Schedule((1, (2, 3), 4)), guidance=2.0)
    return bind(plan, {BACKBONE: network}, on_cuda(tiny_vq))


def searched_plan():
    run = whole(vq(), var(), guidance=2.0, top_k=5)
    sizes = {"latent_channels": run.tokenizer.channels, "side": run.schedule.finest, "num_classes": 5, "cells": 1}
    scorer = on_cuda(lambda: LatentScorer(LatentScorerConfig(scales=(1,), width=4, **sizes)))
    plan = latent_search(run.plan, scorer, candidates=3, scorer="scorer")
    return bind(plan, {**run.networks, "scorer": scorer}, run.tokenizer)


def gpt(**changes):
    return on_cuda(lambda: RasterGPT(tiny_gpt_config(**changes)))


def distilled():
    network = on_cuda(
        lambda: DistilledVAR(DistilledVARConfig(depth=2, embed_dim=16, num_heads=2, coded=1, jumps=(2,), **SMALL))
    )
    return bind(in_steps(plan_of(network), network), {BACKBONE: network}, vq())


def distilled_gpt():
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_hidden": 48, "vocab_size": 16, "side": 3}
    steps = {"num_classes": 5, "latent_channels": 4, "coded": 3, "jumps": (4,)}
    network = on_cuda(lambda: DistilledRasterGPT(DistilledRasterGPTConfig(**sizes, **steps)))
    return bind(in_steps(plan_of(network), network), {BACKBONE: network}, on_cuda(tiny_vq))


whole = run_with


def flowar_plan():
    return whole(on_cuda(tiny_kl), flowar(), guidance=2.0, solver="heun", steps=2)


def mar():
    return on_cuda(lambda: MAR(tiny_mar_config()))


def acdit():
    return on_cuda(lambda: ACDiT(tiny_acdit_config()))


def acdit_plan():
    return whole(on_cuda(lambda: tiny_kl(4)), acdit(), guidance=2.0, denoising_steps=3)


def xar():
    return on_cuda(lambda: XAR(tiny_xar_config()))


def ecar():
    return on_cuda(lambda: ECAR(ECARConfig(**vars(tiny_config(patch_nums=(1, 2, 4))))))


def himar_plan():
    network = on_cuda(lambda: HiMAR(tiny_himar_config()))
    return whole(on_cuda(lambda: tiny_kl(4, 5)), network, guidance=2.0, denoising_steps=3)


def mar_plan(**head):
    return whole(on_cuda(lambda: tiny_kl(3)), mar(), guidance=2.0, **head)


def gpt_plan(**settings):
    return whole(on_cuda(tiny_vq), gpt(), guidance=2.0, top_k=4, **settings)


def hmar_plan():
    tokenizer = vq()
    return whole(tokenizer, hmar(), guidance=2.0, top_p=0.9, refine="published")


def code_plan():
    tokenizer = vq()
    return code_of(whole(tokenizer, var(), guidance=1.0), whole(tokenizer, var(), guidance=1.0), draft_scales=1)


TEXT = {"text_channels": 6, "vocab_size": 16}


def text_gpt():
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_hidden": 48, "side": 3, "text_tokens": 8}
    return on_cuda(lambda: TextRasterGPT(TextRasterGPTConfig(**sizes, **TEXT)))


def star():
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "latent_channels": 8, "patch_nums": (1, 2, 3)}
    return on_cuda(lambda: STAR(STARConfig(**sizes, **TEXT)))


def bsq():
    sizes = {"codebook_dim": 4, "ch": 8, "ch_mult": (1, 1), "num_res_blocks": 1, "norm_groups": 4}
    return on_cuda(lambda: MultiScaleBSQ(MultiScaleBSQConfig(patch_nums=(1, 2, 3), **sizes)))


def infinity():
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "token_bits": 4, "text_channels": 6, "text_longest": 6}
    maps = {"patch_nums": (1, 2, 3), "aspect_ratios": False, "reference_side": 3, "levels": 3}
    return on_cuda(lambda: Infinity(InfinityConfig(**sizes, **maps)))


def varedit():
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "token_bits": 4, "text_channels": 6, "text_longest": 6}
    maps = {"patch_nums": (1, 2, 3), "aspect_ratios": False, "reference_side": 3, "levels": 3}
    return on_cuda(lambda: VAREdit(VAREditConfig(**sizes, **maps)))


def car():
    return on_cuda(lambda: CAR(CARConfig(depth=2, embed_dim=16, num_heads=2, control_channels=(4,) * 5, **SMALL)))


def controlar():
    sizes = {"depth": 3, "embed_dim": 32, "num_heads": 2, "mlp_hidden": 48, "side": 3, "text_tokens": 8}
    encoder = {"encoder_width": 16, "encoder_depth": 1, "encoder_heads": 2, "encoder_side": 2}
    return on_cuda(lambda: ControlAR(ControlARConfig(**sizes, **encoder, **TEXT)))


def prompts():
    """Two prompts of different lengths, and as many negative ones."""
    mask = torch.ones(2, 3, dtype=torch.bool, device=CUDA)
    embeds = PromptEmbeds(torch.zeros(2, 3, 6, device=CUDA), mask, torch.zeros(2, 6, device=CUDA))
    return Prompts(embeds, embeds.padded(5))


OF_TEXT = {
    "llamagen-t2i": lambda: whole(on_cuda(tiny_vq), text_gpt(), guidance=2.0, top_k=4, guided_tokens=3),
    "infinity": lambda: whole(bsq(), infinity(), guidance=2.0, top_p=0.97, temperature=0.5),
    "star": lambda: whole(vq(), star(), guidance=2.0, top_k=5, top_p=0.9),
}
# Of networks that read an image too.
OF_IMAGES = {
    "car": lambda: whole(vq(), car(), guidance=2.0, top_k=5),
    "controlar": lambda: whole(on_cuda(tiny_vq), controlar(), guidance=2.0, top_k=4, guided_tokens=3),
    "varedit": lambda: whole(bsq(), varedit(), guidance=2.0, top_p=0.9),
}
ASKED = OF_TEXT | OF_IMAGES


def fewer_plan():
    run = whole(vq(), var(), guidance=1.0)
    return rebound(run, scalekv(fastvar(run.plan, (0.5,)), 0.5))


PLANS = ASKED | {
    "var": lambda: whole(vq(), var(), guidance=2.0, top_k=5, top_p=0.9),
    "var-smooth": lambda: whole(vq(), var(), smooth=True),
    "hmar": hmar_plan,
    "flexvar": flexvar_plan,
    "flowar": flowar_plan,
    "mar": lambda: mar_plan(denoising_steps=3),
    "acdit": acdit_plan,
    "himar": himar_plan,
    "xar": lambda: whole(on_cuda(lambda: tiny_kl(4)), xar(), guidance=2.0, steps=3),
    "ecar": lambda: whole(on_cuda(lambda: tiny_kl(1, 2, 4)), ecar(), guidance=2.0, solver="heun", steps=2),
    "mar-dpm": lambda: mar_plan(solver="dpm++", denoising_steps=3),
    "gpt": lambda: gpt_plan(top_p=0.9, guided_tokens=3),
    "dar": lambda: whole(on_cuda(tiny_flow), on_cuda(tiny_dar), guidance=2.0, top_k=4),
    "code": code_plan,
    "distilled-var": distilled,
    "distilled-gpt": distilled_gpt,
    "variant": lambda: variant_of(whole(vq(), var(depth=4), guidance=1.0), subnet=2, full_scales=1),
    "fewer": fewer_plan,
    "latent-search": searched_plan,
}


def with_image(run, asked):
    """A request with an image, which is read before drawing."""
    size = run.schedule.image_size(run.tokenizer.downsample)
    request = run.networks[BACKBONE].image_request(torch.zeros(1, 3, *size, device=CUDA), run.tokenizer, run.schedule)
    return WithImage(of_labels(asked, 5) if isinstance(asked, torch.Tensor) else asked, request)


@pytest.mark.parametrize("edited", [False, True], ids=["drawn", "edited"])
@pytest.mark.parametrize("name", PLANS)
def test_decoding_never_waits_for_the_device(name, edited, monkeypatch):
    with fake_cuda(monkeypatch):
        plan, preserved = PLANS[name](), None
        asked = prompts() if name in OF_TEXT or name in ("controlar", "varedit") else torch.tensor([1, 2], device=CUDA)
        if name in OF_IMAGES:
            asked = with_image(plan, asked)
        noise = Noise([0, 1], CUDA)
        if edited and name == "himar":
            pytest.skip("it draws whole images only")
        if edited:
            size = plan.schedule.image_size(plan.tokenizer.downsample)
            with torch.no_grad():
                images = torch.zeros(1, 3, *size, device=CUDA)
                if name.startswith(("flowar", "mar", "acdit", "xar", "ecar")):
                    tokens = plan.tokenizer.scales.split(plan.tokenizer.pyramid.maps(plan.tokenizer.encode(images)))
                else:
                    features = plan.tokenizer.features(images, plan.schedule)
                    tokens = plan.tokenizer.pyramid_of(plan.schedule).encode(features)
            preserved = preserved_before(1, tokens, plan.tokenizer, plan.schedule)
        with Watch() as watch:
            decoded = decode(plan, asked, noise, preserved=preserved)
        assert not watch.waits
        assert watch.copies.keys() <= {"cpu to cuda"}
        assert watch.copies.total() <= (name == "code")  # the mask of the refiner's prefill, once a process
        assert {tensor.device for tensor in (*decoded.tokens, decoded.latent)} == {CUDA}
        assert plan.tokenizer.decode(decoded.latent).device == CUDA


def in_eight_bits(precision, monkeypatch):
    """What quantises the networks of a run, whose rest is then bfloat16."""
    if precision == "int8":
        return quantize_linears
    monkeypatch.setattr(pytest.importorskip("torchao.quantization.quant_api"), "_check_hardware_support", str)
    return quantize_to_float8


@pytest.mark.parametrize("precision", ["int8", "float8"])
@pytest.mark.parametrize("name", ["var", "gpt", "infinity", "flowar"])
def test_in_eight_bits_decoding_never_waits_for_the_device(name, precision, monkeypatch):
    quantize, products = in_eight_bits(precision, monkeypatch), []
    product = "_int_mm" if precision == "int8" else "_scaled_mm"
    multiply = getattr(torch, product)
    monkeypatch.setattr(torch, product, lambda *args, **more: products.append(args[0].dtype) or multiply(*args, **more))
    with fake_cuda(monkeypatch):
        run = PLANS[name]()
        for network in run.networks.values():
            halved(network)
            quantize(network)
            wide = [layer for layer in network.modules() if type(layer) in (nn.Linear, Linear) and not is_float8(layer)]
            assert {layer.weight.dtype for layer in wide} == {torch.bfloat16}
        asked = prompts() if name in OF_TEXT else torch.tensor([1, 2], device=CUDA)
        noise = Noise([0, 1], CUDA)
        with Watch() as watch:
            decoded = decode(run, asked, noise)
        assert not watch.waits
        assert not watch.copies
        assert decoded.latent.device == CUDA
    assert set(products) == {torch.int8 if precision == "int8" else torch.float8_e4m3fn}


@pytest.mark.parametrize(("name", "batch", "precision"), [("var-d30", 64, "float8")])
def test_published_widths_never_wait_for_the_device(name, batch, precision, monkeypatch):
    quantize = in_eight_bits(precision, monkeypatch)
    with fake_cuda(monkeypatch):
        with unset_fake_temporarily(), torch.device("meta"):
            shape = skeleton(name)
            network = VAR(replace(shape.backbone.config, depth=2))
        run = whole(on_cuda(lambda: shape.tokenizer), on_cuda(lambda: network), guidance=1.5, top_k=900)
        halved(run.networks[BACKBONE])
        quantize(run.networks[BACKBONE])
        labels, noise = torch.zeros(batch, dtype=torch.int64, device=CUDA), Noise(range(batch), CUDA)
        with Watch() as watch:
            decoded = decode(run, labels, noise)
            images = run.tokenizer.decode(decoded.latent)
        assert not watch.waits
        assert not watch.copies
        assert (images.shape, images.device) == ((batch, 3, 256, 256), CUDA)


def cached(graph) -> list[bool]:
    """Of the keys and values that a graph writes to: whether it was told that they stay where they are."""
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder" and "l_cache_" in node.name]
    return ["_dynamo_static_input_type" in node.meta["tensor_dict"] for node in inputs if "slot" not in node.name]


@pytest.mark.parametrize("name", ["var", "gpt"])
def test_compiled_passes_never_wait_for_the_device(name, monkeypatch):
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    with fake_cuda(monkeypatch):
        run = replace(PLANS[name](), compiler=Compiler(backend))
        asked, noise = torch.tensor([1, 2], device=CUDA), Noise([0, 1], CUDA)
        decode(run, asked, noise)  # makes the graphs
        with Watch() as watch:
            decoded = decode(run, asked, noise)
        assert not watch.waits
        assert not watch.copies
        assert decoded.latent.device == CUDA
    assert [cached(graph) for graph in graphs] == [[True] * 4] * len(graphs)  # of two layers
    assert len(graphs) == (3 if name == "var" else 2)
    torch.compiler.reset()


class Calls(Watch):
    """Counts the operators that compute or copy: not views, nor memory that is only reserved."""

    # One kernel on a GPU, though fake mode would take them apart.
    WHOLE = ("scaled_dot_product_attention", "upsample_bicubic2d", "_fused_rms_norm")
    FREE = ("prim", "empty", "new_empty", "detach", "alias", "lift_fresh", "_unsafe_view")

    def __init__(self):
        super().__init__()
        self.counts, self.from_host = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        if not name.startswith((*self.WHOLE, *self.FREE)):
            with self:  # inference mode shows operators that consist of others
                found = func.decompose(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        found = super().__torch_dispatch__(func, types, args, kwargs)
        if name.startswith(
            "scaled_dot_product_attention"
        ):  # as the kernels store it, so that heads join without a copy
            found = found.transpose(1, 2).contiguous().transpose(1, 2)
        if not func.is_view and not name.startswith(self.FREE):
            self.counts[name] += 1
            devices = {each.device.type for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
            self.from_host[name] += len(devices) > 1
        return found


def of_meta(make):
    """A network on the device whose weights are never computed, so that it may be large."""
    with torch.device("meta"):
        return make()


def test_a_batch_of_var_d16_makes_few_calls_and_none_that_reads_the_host(monkeypatch):
    with fake_cuda(monkeypatch):
        tokenizer = on_cuda(lambda: of_meta(lambda: MultiScaleVQ(MultiScaleVQConfig())))
        network = on_cuda(lambda: of_meta(lambda: VAR(VARConfig.published(16))))
        run = whole(tokenizer, network.eval(), guidance=1.5, top_k=900, top_p=0.95)
        labels, noise = torch.tensor([1, 2], device=CUDA), Noise([0, 1], CUDA)
        with Calls() as calls:
            decode(run, labels, noise)
        assert 2000 < calls.counts.total() <= 3000
        assert not +calls.from_host
        assert not calls.copies
        assert not calls.waits


def losses():
    labels = torch.tensor([1, 2], device=CUDA)
    tokenizer = vq()
    images = torch.zeros(2, 3, tokenizer.image_side, tokenizer.image_side, device=CUDA)
    tokens = tokenizer.encode(images)
    inputs, target = tokenizer.quantize.teacher_inputs(tokens), torch.cat(tokens, dim=1)
    yield tokenizer, lambda: tokenizer(images).quantizer_loss
    for network in (var(), hmar()):
        yield network, lambda network=network: F.cross_entropy(network(labels, inputs).flatten(0, 1), target.flatten())
    masked, network = torch.ones_like(target, dtype=torch.bool), hmar()
    shown = torch.zeros(2, target.shape[1], 8, device=CUDA)
    yield network, lambda: network(labels, inputs, shown[:, 1:], masked[:, 1:]).sum()
    flow = flowar()
    maps = torch.zeros(2, flow.scales.total, 4, device=CUDA)
    yield flow, lambda: flow(labels, maps[:, 1:], maps, torch.zeros(2, 3, device=CUDA)).sum()
    blocks, clean = acdit(), torch.zeros(2, 16, 4, device=CUDA)
    yield blocks, lambda: blocks(labels, clean, clean, torch.zeros(2, 4, dtype=torch.int64, device=CUDA)).sum()
    cells, stages = xar(), ecar()
    yield cells, lambda: cells(labels, clean, torch.zeros(2, 4, device=CUDA)).sum()
    maps = torch.zeros(2, stages.scales.total, 4, device=CUDA)
    yield stages, lambda: stages(labels, maps[:, 1:], maps, torch.zeros(2, 3, device=CUDA)).sum()
    masked, order = mar(), torch.arange(9, device=CUDA).repeat(2, 1)
    steps = torch.zeros(2, 2, 5, dtype=torch.int64, device=CUDA)
    states, given = torch.zeros(2, 2, 5, 4, device=CUDA), torch.zeros(2, 9, 4, device=CUDA)
    data = {"data": states, "state": states, "noise": states, "steps": steps}
    yield (
        masked,
        lambda: sum(losses_of("cosine", "epsilon", masked(labels, given, order, 4, states, steps), **data)).sum(),
    )
    phases = on_cuda(lambda: HiMAR(tiny_himar_config()))
    pivots, tokens = masked_map(16, 12, 4, 12), masked_map(25, 25, 5, 1)
    passed = torch.ones(2, dtype=torch.bool, device=CUDA)
    yield phases, lambda: sum(part.sum() for part in phases(labels, pivots, tokens, passed))
    raster = gpt()
    yield raster, lambda: raster(labels, torch.zeros(2, 8, dtype=torch.int64, device=CUDA)).sum()


def masked_map(count, noisy, known, steps):
    order, steps = (
        torch.arange(count, device=CUDA).repeat(2, 1),
        torch.zeros(2, 2, steps, dtype=torch.int64, device=CUDA),
    )
    return Masked(torch.zeros(2, count, 4, device=CUDA), order, known, torch.zeros(2, 2, noisy, 4, device=CUDA), steps)


def test_a_training_pass_of_every_family_stays_on_the_device(monkeypatch):
    """Forward alone: torch's backward pass asks for a real driver."""
    with fake_cuda(monkeypatch):
        for network, loss in losses():
            with Watch() as watch:
                assert loss().device == CUDA
            assert not watch.waits, type(network)
            assert "cuda to cpu" not in watch.copies


class Answers(Watch):
    """Answers what speculation reads. Odd images accept no draft in the first round; masks select everything."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.books, self.checked = None, None  # of the round that is read now
        self.rounds = []  # with drafts: their operators, and their copies to the device
        monkeypatch.setattr(FakeTensor, "tolist", lambda tensor: self.listed(tensor))
        weigh = verify._Books.weigh

        def noting(books, checked, passes):
            self.books, self.checked = books, checked
            return weigh(books, checked, passes)

        monkeypatch.setattr(verify._Books, "weigh", noting)

    def answer(self, name, args):
        if name.startswith("index"):
            return args[0].clone()
        return torch.arange(len(args[0]), device=CUDA).unsqueeze(1) if name.startswith("nonzero") else 0

    def listed(self, tensor):
        assert tensor.device == CUDA
        self.waits["tolist"] += 1
        if tensor.dim() == 1:  # how many tokens are right
            return [1] * len(tensor)
        if self.books is None:
            with unset_fake_temporarily():
                return torch.zeros(tensor.shape, dtype=tensor.dtype).tolist()
        if self.checked.draft is not None:
            self.rounds.append((self.operators, self.copies["cpu to cuda"]))
        self.operators, self.copies["cpu to cuda"] = 0, 0
        told = [self.told(image) + [0] * (tensor.shape[1] - 3) for image in range(len(tensor))]
        self.books = None
        return told

    def told(self, image):
        """Tokens that an image gains, how far it drafts next, and that it does not give up."""
        run, draft = self.books.run, self.checked.draft
        accepted = draft.depths.known[image] if draft is not None and (len(self.rounds) > 1 or image % 2 == 0) else 0
        new = min(1 + accepted, run.left[image])
        return [new, max(0, min(self.books.lengths.window, run.left[image] - new) - 1), 0]


def speculated(given, draft=None, plan=gpt_plan):
    run = plan()
    model = draft and DraftModel(draft(), "draft", tokenizer=run.tokenizer, frequent=tuple(range(16)))
    pipe = SimpleNamespace(tokenizer=run.tokenizer, backbone=run.networks["backbone"], draft_model=model)
    networks = {**run.networks, **({"draft": model.network} if model else {})}
    return bind(speculative(run.plan, given, pipe), networks, run.tokenizer)


def eagle():
    sizes = {"embed_dim": 32, "num_heads": 2, "mlp_hidden": 48, "vocab_size": 16, "side": 3}
    return on_cuda(lambda: EagleHead(EagleHeadConfig(**sizes)))


def heads(kind):
    return lambda: on_cuda(lambda: kind(MedusaHeadsConfig(32, 16, heads=3, hidden=8)))


TREE = {"draft_tree": (2, 2)}
LANTERN = {"accept": "lantern", "neighbours": 3}
# Settings, what drafts, and the operators of a round at most: those of the passes, and what drafting and judging add.
SPECULATIONS = {
    "jacobi": ({"speculate": "jacobi", "draft_length": 4}, None, 460),
    "jacobi-keep": (
        {"speculate": "jacobi", "draft_length": 4, "jacobi_start": "likeliest", "jacobi_keep": True},
        None,
        510,
    ),
    "draft-auto": ({"speculate": "draft", "draft_length": "auto"}, lambda: gpt(depth=1), 980),
    "draft-tree-decayed": ({"speculate": "draft", "accept": "decayed", **TREE}, lambda: gpt(depth=1), 1000),
    "draft-kseq": ({"speculate": "draft", "accept": "kseq"}, lambda: gpt(depth=1), 2080),
    "early-exit-grouped": ({"speculate": "early-exit", "accept": "grouped"}, None, 1000),
    "eagle-lantern": ({"speculate": "eagle", **LANTERN}, eagle, 1080),
    "medusa": ({"speculate": "medusa"}, heads(MedusaHeads), 600),
    "eagle-codes": ({"speculate": "eagle", "draft_codes": 5}, eagle, 1080),
    "hydra-tree": ({"speculate": "hydra", **TREE}, heads(HydraHeads), 800),
    "jacobi-judge": ({"speculate": "jacobi", "draft_length": 4, "accept": "judge", "judge": "here"}, None, 480),
    "ngram": ({"speculate": "ngram", "draft_length": 3}, None, 375),
    "ngram-tree": ({"speculate": "ngram", **TREE}, None, 560),
}


@pytest.mark.parametrize("name", SPECULATIONS)
def test_a_round_of_speculation_reads_once_and_copies_nothing(name, monkeypatch):
    """But the drafts of an n-gram table, which is on the host."""
    given, draft, operators = SPECULATIONS[name]
    monkeypatch.setattr(settings, "_judge", lambda given: Judged((0.5,) * 32, 0.0))  # no weights are read here
    with fake_cuda(monkeypatch):
        plan = speculated(given, draft)
        with Answers(monkeypatch) as watch:
            decoded = decode(plan, torch.tensor([1, 2], device=CUDA), Noise([0, 1], CUDA))
        assert len(watch.rounds) > 1
        assert watch.waits == {"tolist": 1 + len(watch.rounds)}  # and the first pass, which has no drafts
        assert {copies for _, copies in watch.rounds} == {1 if name.startswith("ngram") else 0}
        # The first round computes the noise of many.
        assert max(found for found, _ in watch.rounds[1:]) <= operators
        assert watch.copies.keys() == {"cpu to cuda"}
        assert {tensor.device for tensor in (*decoded.tokens, decoded.latent)} == {CUDA}


def test_tokens_of_plain_decoding_cost_little_more_than_a_pass(monkeypatch):
    with fake_cuda(monkeypatch):
        plan = speculated({"speculate": "auto", "draft_length": 4})
        monkeypatch.setattr(as_plain, "LOSS", 1e9)  # no clock ends the iteration
        with Answers(monkeypatch) as watch:
            decoded = decode(plan, torch.tensor([1, 2], device=CUDA), Noise([0, 1], CUDA))
        assert watch.waits == {"tolist": 9}  # no guess is right: each pass gives a token
        plain_passes = Watch()
        with plain_passes:
            decode(gpt_plan(), torch.tensor([1, 2], device=CUDA), Noise([0, 1], CUDA))
        assert watch.operators < 1.3 * plain_passes.operators
        assert watch.copies["cpu to cuda"] == plain_passes.copies["cpu to cuda"]
        assert {tensor.device for tensor in (*decoded.tokens, decoded.latent)} == {CUDA}


@pytest.mark.parametrize("rule", [{}, LANTERN], ids=["standard", "lantern"])
def test_next_scale_speculation_stays_on_the_device(rule, monkeypatch):
    with fake_cuda(monkeypatch):
        plan = speculated({"speculate": "draft", "draft_length": 2, **rule}, var, PLANS["var"])
        with Answers(monkeypatch) as watch:
            decoded = decode(plan, torch.tensor([1, 2], device=CUDA), Noise([0, 1], CUDA))
        drafted = 2  # of three scales; the last one is never drafted
        assert watch.waits == {
            "nonzero.default": 3,
            "item.default": 3 + drafted,
            "index.Tensor": drafted,
            "tolist": drafted,
        }
        assert watch.copies.keys() <= {"cpu to cuda"}
        assert {tensor.device for tensor in (*decoded.tokens, decoded.latent)} == {CUDA}


def applied(module, move, recurse=True):
    """As `Module._apply`, which cannot move fake tensors."""
    for child in module.children():
        child._apply(move)
    for name, weight in module._parameters.items():
        module._parameters[name] = weight if weight is None else torch.nn.Parameter(move(weight))
    for name, buffer in module._buffers.items():
        module._buffers[name] = move(buffer)
    return module


@pytest.mark.parametrize("given", [{"speculate": "early-exit", **LANTERN}, {}], ids=["speculative", "plain"])
def test_a_plan_made_before_the_model_is_moved_draws_after_it(given, monkeypatch):
    with fake_cuda(monkeypatch):
        monkeypatch.setattr(torch.nn.Module, "_apply", applied)
        pipe = Pipeline(on_cuda(tiny_vq, "cpu"), on_cuda(lambda: RasterGPT(tiny_gpt_config()), "cpu"))
        plan = pipe.plan(top_k=4, **given)
        pipe.to(CUDA)
        with Answers(monkeypatch):
            decoded = decode(pipe.bind(plan), torch.tensor([1, 2], device=CUDA), Noise([0, 1], CUDA))
        assert decoded.latent.device == CUDA


def test_the_watch_sees_what_waits(monkeypatch):
    with fake_cuda(monkeypatch), Watch() as watch:
        x = torch.ones(2, device=CUDA)
        for wait in (lambda: bool(x.any()), lambda: x.nonzero()):
            before = watch.waits.total()
            with suppress(Exception):  # there is no value to return
                wait()
            assert watch.waits.total() > before
        x.to("cpu")
        assert watch.copies["cuda to cpu"]


@pytest.mark.parametrize("kind", ["still-lifes", "inception"])
def test_features_of_images_are_computed_on_the_device(kind, monkeypatch):
    names = list(extractors.LAYERS)
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: {})
    monkeypatch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None)
    with fake_cuda(monkeypatch):
        if kind == "inception":  # without weights, which would be read and checked
            extractor = extractors.InceptionExtractor.__new__(extractors.InceptionExtractor)
            extractors.Extractor.__init__(extractor, "inception", names)
            extractor.network = on_cuda(lambda: inception.FeatureExtractorInceptionV3("i", ["2048", "logits_unbiased"]))
        else:
            extractor = on_cuda(lambda: extractors.StillLifeExtractor("judge", names))
        with torch.no_grad(), Watch() as watch:
            found = extractor(torch.zeros(2, 3, 64, 64, dtype=torch.uint8, device=CUDA))
        assert not watch.waits
        assert not watch.copies
        assert [feature.device for feature in found] == [CUDA] * 3
