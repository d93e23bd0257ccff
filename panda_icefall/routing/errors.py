"""Named errors of the routing."""


class PandaError(RuntimeError):
    """Base of the errors this project names."""


class UnknownSignatureError(PandaError):
    """A k2 function to replace has parameters this version does not know."""
