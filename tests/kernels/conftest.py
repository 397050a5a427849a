import pytest
import torch


@pytest.fixture
def threads(request: pytest.FixtureRequest):
    """Run the test with this number of torch's threads; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param or before)
    yield request.param
    torch.set_num_threads(before)
