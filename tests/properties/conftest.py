"""What the commands set for their own process is put back."""

import logging

import pytest
import torch


@pytest.fixture(autouse=True)
def process_as_before():
    threads = torch.get_num_threads()
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)
