"""The floating point dtypes of inputs, and those that arithmetic has."""

import torch

HALVES = (torch.float16, torch.bfloat16)
WIDE = (torch.float32, torch.float64)
