import pytest


@pytest.fixture(scope="session")
def original():
    """The original's blocks in PyTorch."""
    pytest.importorskip("torch", reason="the independent blocks are written in PyTorch")
    from tests.models import torch_blocks

    return torch_blocks
