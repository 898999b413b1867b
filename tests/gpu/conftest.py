"""Everything here needs a GPU: `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

HERE = __file__.rpartition("/")[0]


def pytest_collection_modifyitems(items):
    for item in items:
        if str(item.path).startswith(HERE):
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def flags():
    """Of the process, as they were; fp32 means fp32 unless a test says otherwise."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    names = ((matmul, "allow_tf32"), (cudnn, "allow_tf32"), (cudnn, "benchmark"), (cudnn, "deterministic"))
    before = [getattr(*name) for name in names]
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    yield
    for (place, name), value in zip(names, before, strict=True):
        setattr(place, name, value)
    torch.use_deterministic_algorithms(False)
