"""What is installed, whether it fits together, and whether a recipe can be routed."""

from panda_icefall.runs.doctor.examination import examine
from panda_icefall.runs.doctor.findings import Diagnosis, Finding, print_diagnosis

__all__ = ["Diagnosis", "Finding", "examine", "print_diagnosis"]
