import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These tensors are small: beside other work, threads wait for each other far longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
