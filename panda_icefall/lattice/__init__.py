"""The transducer lattice: from arc log-probs to the total score and the occupations.

Tensors only: this floor imports nothing of the project, and k2 only at the call that uses it.
"""

from panda_icefall.lattice.banded import banded_recursion
from panda_icefall.lattice.mutual_information import (
    has_k2_recursion,
    is_k2_chosen,
    joint_mutual_information_recursion,
    mutual_information_recursion,
)
from panda_icefall.lattice.recursion import exact_recursion

__all__ = [
    "banded_recursion",
    "exact_recursion",
    "has_k2_recursion",
    "is_k2_chosen",
    "joint_mutual_information_recursion",
    "mutual_information_recursion",
]
