"""The initialisation that networks of continuous tokens share, before each sets what is its own."""

from torch import nn

from var_toolkit.models.layers.gated_mlp import RMSNorm


def init_linears_and_norms(network: nn.Module) -> None:
    """In place: weights of linear layers are Xavier's uniform, biases 0, norms 1 and 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, (nn.LayerNorm, RMSNorm)):
            nn.init.ones_(module.weight)
        else:
            continue
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
