"""Which weights Muon trains, and which AdamW."""

import pytest
import torch
from torch import nn

from var_toolkit.models.infinity import Infinity, InfinityConfig
from var_toolkit.models.llamagen import RasterGPT, RasterGPTConfig
from var_toolkit.models.var import VAR, VARConfig
from var_toolkit.training.optimisers import optimisers
from var_toolkit.training.recipe import OptimiserConfig, recipe_from
from var_toolkit.training.var_objective import decay_groups

NETWORKS = {
    "var": (VAR, VARConfig(depth=1, embed_dim=8, num_heads=1, patch_nums=(1, 2), vocab_size=4, latent_channels=2)),
    "infinity": (
        Infinity,
        InfinityConfig(
            depth=1, embed_dim=8, num_heads=1, token_bits=4, text_channels=8, patch_nums=(1, 2), aspect_ratios=False
        ),
    ),
    "llamagen": (RasterGPT, RasterGPTConfig(depth=1, embed_dim=8, num_heads=1, vocab_size=4, side=2)),
}
OUTER = {"word_embed", "head", "output", "embedding_table", "tok_embeddings", "class_emb", "lvl_embed"}


@pytest.mark.parametrize("name", NETWORKS)
def test_muon_trains_the_matrices_of_hidden_layers_and_adamw_the_rest(name):
    cls, config = NETWORKS[name]
    network = cls(config)
    rest, matrices = optimisers(OptimiserConfig(lr=1e-3, kind="muon"), network, decay_groups(network), 1e-3)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    by_muon, by_adamw = (
        [names[id(p)] for group in one.param_groups for p in group["params"]] for one in (matrices, rest)
    )
    assert sorted(by_muon + by_adamw) == sorted(names.values())
    assert all(network.get_parameter(one).ndim == 2 for one in by_muon)
    assert not OUTER & {part for one in by_muon for part in one.split(".")}
    in_blocks = {one for one, p in network.named_parameters() if p.ndim == 2 and ("blocks." in one or "layers." in one)}
    assert in_blocks <= set(by_muon)


def test_a_network_without_hidden_matrices_has_adamw_alone():
    network = nn.Conv2d(2, 2, 3)
    (only,) = optimisers(OptimiserConfig(lr=1e-3, kind="muon"), network, decay_groups(network), 1e-3)
    assert isinstance(only, torch.optim.AdamW)


def test_muon_refuses_shards(settings):
    with pytest.raises(ValueError, match=r"optimiser: kind is muon.*ddp"):
        recipe_from(settings("var", optimiser={"lr": 1e-3, "kind": "muon"}, parallel="fsdp"))
