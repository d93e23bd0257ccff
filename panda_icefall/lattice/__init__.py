"""The transducer lattice: from arc log-probs `px`, `py` to the total score and the occupations.

Tensors only: this floor imports nothing of the project, and k2 only at the call that uses it.
"""

from panda_icefall.lattice.recursion import mutual_information_recursion, torch_recursion

__all__ = ["mutual_information_recursion", "torch_recursion"]
