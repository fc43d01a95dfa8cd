"""Trains LlamaGen's tokenizer (arXiv 2406.06525, section 2.1): one token map, codes of unit length."""

from var_toolkit.tokenizers.raster_vq import RasterVQ
from var_toolkit.training.registry import objective
from var_toolkit.training.tokenizer_objective import TokenizerObjective


@objective("raster-tokenizer")
class RasterTokenizerObjective(TokenizerObjective):
    """Reconstruction through one token map."""

    network_type = RasterVQ
