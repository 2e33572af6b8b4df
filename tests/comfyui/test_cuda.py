"""Every family as in test_families.py, on a graphics card; `make test-cuda` runs this alone."""

from __future__ import annotations

import pytest
import torch

from harness.environment import default_version
from tests.comfyui.families import FAMILIES
from tests.comfyui.test_families import check_family, run_families

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason=f"NOT RUN on a graphics card: PyTorch {torch.__version__} finds none here that it can use",
)


@pytest.fixture(scope="module", params=["--normalvram", "--gpu-only"])
def report(request):
    return run_families(f"families-{default_version()}-cuda{request.param}.json", request.param)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_planted_direction_is_read_back_on_a_card_too(report, family):
    assert report["device"].startswith("cuda"), f"the text encoder ran on {report['device']}"
    check_family(report, family)
