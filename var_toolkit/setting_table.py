"""Every setting of sampling, declared once: type, meaning, range, and what it is for.

From this table come the keywords of `Pipeline.plan`, the options of the command line, the keys of `plan` in a bench
table, the checks of ranges, and the table in docs/methods.md (`scripts/settings_table.py`). A new setting is one more
key; what reads it is the code of its method. It imports no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple, TypedDict, get_args, get_type_hints

from var_toolkit.core.schedule import Schedule

COUNT = 2**31 - 1  # an upper limit of counts, far above any real number of tokens, codes or images
DISCRETE, CONTINUOUS, DISTILLED = ("discrete tokens",), ("continuous tokens",), ("distilled models",)
PROPOSERS = ("auto", "jacobi", "draft", "early-exit", "ngram", "eagle", "medusa", "hydra")
TRAINED = ("draft", "early-exit", "eagle", "medusa", "hydra")  # proposers that are networks
RULES = ("standard", "kseq", "lantern", "grouped", "decayed", "judge")


class Range(NamedTuple):
    """From `low` to `high`, both included."""

    low: float
    high: float
    whole: bool = False
    meaning: str = ""  # of the lowest value

    def __str__(self) -> str:
        ends = [f"{end}" if self.whole else f"{end:g}" for end in (self.low, self.high)]
        meaning = f" ({self.meaning})" if self.meaning else ""
        return f"a {'whole ' if self.whole else ''}number from {ends[0]}{meaning} to {ends[1]}"


def count(low: int, meaning: str = "") -> Range:
    """Whole numbers from `low`."""
    return Range(low, COUNT, True, meaning)


SHARE = Range(0, 1, meaning="off")


@dataclass(frozen=True)
class Setting:
    """What is to be known of a setting."""

    help: str
    range: Range | None = None  # of a number; None where what reads the setting checks it
    metavar: str | tuple[str, str] | None = None
    of: tuple[str, ...] = ()  # the kind of tokens, the proposers or the rule that it has a meaning for; empty for all
    option: str = ""  # on the command line; by default the name with a hyphen for each underscore
    types: tuple[Any, ...] = ()  # besides None: those of the annotation


# Limits without a mathematical reason keep float32 finite; published settings are far inside them.
class SamplingSettings(TypedDict, total=False):
    """How tokens are drawn, by which layers, and in how many passes."""

    cfg: Annotated[
        float | None,
        Setting(
            "guidance as the authors of the model count it: 0 is off for VAR and HMAR, 1 for LlamaGen, FlowAR and MAR",
            Range(0, 1e4, meaning="off"),
            "SCALE",
        ),
    ]
    guidance_scale: Annotated[
        float | None,
        Setting("instead, as diffusers counts for every model: 1 is off", Range(1, 1e4, meaning="off"), "SCALE"),
    ]
    pivot_cfg: Annotated[
        float | None,
        Setting("Hi-MAR: guidance of the pivots, 1 is off; where only cfg is given, as that", Range(1, 1e4), "SCALE"),
    ]
    first_cfg: Annotated[
        float | None,
        Setting(
            "next-token models: guidance of the first token, which grows evenly to cfg at the last one; where only cfg "
            "is given, as that",
            Range(0, 1e4, meaning="off"),
            "SCALE",
            of=DISCRETE,
        ),
    ]
    cfg_schedule: Annotated[
        str | None,
        Setting("linear: guidance grows with the scales or tokens drawn, as published; or constant", metavar="NAME"),
    ]
    schedule: Annotated[
        str | Schedule | Sequence[int | Sequence[int]] | None,
        Setting("FlexVAR: sides of the token maps, such as 1,2,4,8,16, or HxW, as in 2x3", metavar="S,S,..."),
    ]
    size: Annotated[
        tuple[int, int] | None,
        Setting("FlexVAR: instead, width and height of the images in pixels", metavar="WxH"),
    ]
    top_k: Annotated[
        int | None, Setting("sample from the k most probable tokens; 0 is off", count(0, "off"), of=DISCRETE)
    ]
    top_p: Annotated[
        float | None,
        Setting("sample from the most probable tokens up to this total probability; 0 is off", SHARE, of=DISCRETE),
    ]
    temperature: Annotated[
        float | tuple[float, ...] | None,  # one for all scales, or one per scale
        Setting(
            "of the logits, of MAR: of the noise that is added: above 1 images vary more", Range(1e-6, 1e6), of=DISCRETE
        ),
    ]
    smooth: Annotated[
        bool | None,
        Setting("mix codes (Gumbel softmax) instead of sampling one: smoother images, not for FID", of=DISCRETE),
    ]
    solver: Annotated[
        str | None,
        Setting(
            "FlowAR, xAR, E-CAR: published, euler, midpoint, heun, sde; (Hi-)MAR, ACDiT: published, ddpm, ddim, dpm++",
            metavar="NAME",
            of=CONTINUOUS,
        ),
    ]
    steps: Annotated[
        int | None,
        Setting(
            "FlowAR: solver steps per scale; MAR: iterations, at most one for each token; distilled: 1 or 2",
            Range(1, 10_000, True),
            "N",
            of=(*CONTINUOUS, *DISTILLED),
        ),
    ]
    denoising_steps: Annotated[
        int | None,
        Setting("MAR: solver steps of the diffusion head per token", Range(1, 1000, True), "N", of=CONTINUOUS),
    ]
    coded: Annotated[
        int | None,
        Setting(
            "distilled models: scales (LlamaGen: tokens) that are codes; the others stay embeddings",
            count(0),
            "N",
            of=DISTILLED,
        ),
    ]
    guidance_interval: Annotated[
        tuple[float, float] | None,
        Setting(
            "continuous tokens: guide at times between LOW and HIGH; 0 is data, 1 is noise",
            Range(0, 1),
            ("LOW", "HIGH"),
            of=CONTINUOUS,
        ),
    ]
    guidance_scales: Annotated[
        tuple[int | None, int | None] | None,
        Setting("guide only the scales from A to before B, such as 0:9", metavar="A:B"),
    ]
    guidance_layer: Annotated[
        int | None,
        Setting(
            "Infinity: mix the halves of guidance after this layer, -1 for the last, instead of the logits",
            Range(-1000, 1000, True),
            "N",
        ),
    ]
    guided_tokens: Annotated[
        int | None, Setting("next-token models: guide only the first N tokens", count(0), "N", of=DISCRETE)
    ]
    subnet: Annotated[int | None, Setting("VARiant: layers that draw the finer scales", count(2), "D")]
    full_scales: Annotated[int | None, Setting("VARiant: scales that all layers draw", count(1), "N")]
    refine: Annotated[
        str | Sequence[Sequence[int]] | None,  # as `methods.masked_passes` takes it
        Setting('HMAR: masked passes of each scale: published, off, or "1;1,3;1,1,2,5;..."', metavar="LISTS"),
    ]
    refine_clean: Annotated[bool | None, Setting("HMAR: also hide masked tokens from visible ones")]
    control_strength: Annotated[
        float | None, Setting("ControlAR: weight of the control image; 1 is as trained", Range(0, 100, meaning="off"))
    ]


class FewerSettings(TypedDict, total=False):
    """Fewer tokens and keys at the finest scales."""

    skip_scales: Annotated[
        int | None, Setting("leave out the last N scales: what is there is decoded", count(0, "off"), "N")
    ]
    prune_tokens: Annotated[
        tuple[float, ...] | None,
        Setting(
            "FastVAR: share of the tokens that each of the last scales skips, such as 0.4,0.5",
            Range(0, 0.99, meaning="off"),
            "SHARE,...",
        ),
    ]
    prune_layers: Annotated[
        tuple[int | None, int | None] | None,
        Setting("FastVAR: skip them only in the layers from A to before B, such as 3:28", metavar="A:B"),
    ]
    key_share: Annotated[
        float | None,
        Setting("ScaleKV: share of an image's keys that a layer holds; it evicts the others", Range(1e-6, 1), "SHARE"),
    ]
    key_layers: Annotated[
        tuple[int, ...] | None, Setting("ScaleKV: layers that hold all keys, such as 0,23", count(0), "N,N,...")
    ]


class SpeculationSettings(TypedDict, total=False):
    """Speculative decoding: proposer, acceptance rule and draft length."""

    speculate: Annotated[
        str | None,
        Setting(
            f"proposer: auto (tokens of plain decoding, faster), {', '.join(PROPOSERS[1:-1])} or {PROPOSERS[-1]}",
            metavar="NAME",
        ),
    ]
    accept: Annotated[
        str | None,
        Setting(f"acceptance rule: {RULES[0]} (default), {', '.join(RULES[1:-1])} or {RULES[-1]}", metavar="RULE"),
    ]
    draft_length: Annotated[
        int | str | None,
        Setting(
            "largest number of tokens (VAR: scales) per pass; 1 is plain decoding; auto adapts it",
            count(1, "plain decoding"),
            "N",
        ),
    ]
    draft_tree: Annotated[
        tuple[int, ...] | None,
        Setting("instead of a chain, a tree: children of each node, per level", None, "K,K,...", PROPOSERS[2:]),
    ]
    draft_confidence: Annotated[
        float | None,
        Setting("stop drafting where no token is as probable as P", SHARE, "P", of=TRAINED),
    ]
    draft_codes: Annotated[
        int | None,
        Setting("VocabTrim: draft only the N most frequent codes", count(1), "N", of=TRAINED),
    ]
    jacobi_start: Annotated[
        str | None,
        Setting("jacobi: drafts of new positions: random, repeat or likeliest", metavar="NAME", of=("jacobi",)),
    ]
    jacobi_keep: Annotated[bool | None, Setting("jacobi: keep drafts after a rejected one", of=("jacobi",))]
    exit_layers: Annotated[
        int | None, Setting("early-exit: layers of the target that draft", count(1), "N", of=("early-exit",))
    ]
    delta: Annotated[
        float | None,
        Setting("LANTERN: bound on the probability added from neighbours, 0 to 1", Range(0, 1), of=("lantern",)),
    ]
    factor: Annotated[
        float | None,
        Setting(
            "LANTERN++: that bound as a factor on the draft's own probability",
            Range(1, 1e6),
            of=("lantern",),
            option="--lambda",
        ),
    ]
    neighbours: Annotated[int | None, Setting("LANTERN: number of neighbours", count(1), "K", of=("lantern",))]
    raw_codes: Annotated[
        bool | None, Setting("LANTERN: distances between codes as stored, as published", of=("lantern",))
    ]
    group: Annotated[
        int | None, Setting("grouped: codes that are accepted or rejected together", count(1), "G", of=("grouped",))
    ]
    boost: Annotated[
        float | None,
        Setting("decayed: factor on the acceptance probability of the first draft", Range(1, 1e6), of=("decayed",)),
    ]
    decay: Annotated[
        float | None, Setting("decayed: rate at which that factor decreases per draft", Range(0, 1e6), of=("decayed",))
    ]

    judge: Annotated[
        str | None,
        Setting("judge: the trained judge, one of the package or a directory", metavar="NAME", of=("judge",)),
    ]
    judge_threshold: Annotated[
        float | None,
        Setting("judge: accept where a draft is right with more probability", Range(0, 1), "P", of=("judge",)),
    ]


class SearchSettings(TypedDict, total=False):
    """Search at test time."""

    best_of: Annotated[
        int | None,
        Setting("draw N candidates of each image; a scorer chooses one", Range(1, 1_000_000, True, "off"), "N"),
    ]
    candidates: Annotated[
        int | None,
        Setting(
            "draw N candidates of the scales that a small network scores by their latents",
            Range(1, 1000, True, "off"),
            "N",
        ),
    ]
    latent_scorer: Annotated[
        str | None, Setting("of --candidates: that network, one of the package or a directory", metavar="NAME")
    ]
    scorer: Annotated[
        str | Callable[..., Any] | None,
        Setting("of --best-of: stilllife, scenes, clip=MODEL, or your own as module:function", metavar="NAME"),
    ]
    threshold: Annotated[
        float | None,
        Setting("of --best-of: choose the first candidate with at least this score", Range(-1e9, 1e9), "SCORE"),
    ]


class Settings(SamplingSettings, FewerSettings, SpeculationSettings, SearchSettings, total=False):
    """How images are drawn. None means the model's own default."""

    method: Annotated[
        str | Callable[..., Any] | None,  # from a plan to a plan, applied last
        Setting("a decoding method: an installed one by name, or your own as module:function"),
    ]
    method_options: Annotated[dict[str, Any] | None, Setting("keywords of the method")]


def declared(table: type) -> dict[str, Setting]:
    """The settings of a TypedDict, in its order."""
    found = {name: get_args(hint) for name, hint in get_type_hints(table, include_extras=True).items()}
    return {
        name: replace(
            setting,
            option=setting.option or f"--{name.replace('_', '-')}",
            types=tuple(one for one in get_args(kind) if one is not type(None)),
        )
        for name, (kind, setting) in found.items()
    }


SETTINGS = declared(Settings)
