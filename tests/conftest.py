"""Fixtures that several folders of tests share."""

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from golden.cases import Case, fill, load_case
from warm_python import WarmPython

from var_toolkit.models.hmar import HMAR, HMARConfig
from var_toolkit.models.var import VAR, VARConfig
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ, MultiScaleVQConfig

SMALL = {"patch_nums": (1, 2, 3, 4), "vocab_size": 64}


# Tests that run side by side share the cores, and so do the processes that they start.
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts jobs in the background; Ctrl-C is tested here
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _few_threads():
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def small_tokenizer() -> MultiScaleVQ:
    """The tokenizer of the golden cases: 64 px, 64 codes."""
    return fill(MultiScaleVQ(MultiScaleVQConfig(z_channels=8, ch=32, **SMALL)))


def small_var_network(shared_aln: bool = False, depth: int = 4) -> VAR:
    """The transformer of the golden cases: 10 classes, width 64 * depth."""
    return fill(VAR(VARConfig.published(depth, num_classes=10, latent_channels=8, shared_aln=shared_aln, **SMALL)))


@pytest.fixture(scope="session")
def small_var() -> VAR:
    """The transformer of the golden case var-small."""
    return small_var_network()


@pytest.fixture(scope="session")
def small_hmar() -> HMAR:
    """The transformer of the golden cases hmar-*: two base layers, two for each branch."""
    return fill(HMAR(HMARConfig.published(4, branch_depth=2, num_classes=10, latent_channels=8, **SMALL)))


@pytest.fixture(params=["var-small", "var-small-shared-aln"], scope="session")
def var_case(request: pytest.FixtureRequest) -> tuple[Case, VAR]:
    """A golden case of VAR with its network."""
    return load_case(request.param), small_var_network(shared_aln=request.param.endswith("shared-aln"))


@pytest.fixture(scope="session")
def warm_python() -> Iterator[WarmPython]:
    """Runs Python in processes of their own."""
    python = WarmPython()
    yield python
    python.close()
