"""The installed k2: what it was built for, whether that is the installed torch, what is patched."""

import ast
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from panda_icefall.runs.doctor.environment import TorchBuild, installed_version
from panda_icefall.runs.doctor.findings import OK, Finding, ok, problem, warning
from panda_icefall.runs.doctor.probes import Answer

__all__ = ["K2Install", "examine_k2", "examine_routing", "find_k2", "wheel_suffix"]

# Of the wheel on PyPI that holds an extension for the Python named here.
WHEEL_HASHES = {
    ("1.23.4", "3.10"): "1404589732fdb7f6f5bf62297a20dd73318b7b4f2e10dd52dc3d5b6669688a4c",
}


@dataclass(frozen=True)
class K2Install:
    """A k2 on ``sys.path``, read from its files.

    Attributes:
      folder: Its package folder.
      version: From its package metadata; ``None`` without.
      torch: The torch it was built for, with build tag where known; ``None`` if it does not say.
      cuda: The CUDA it was built for; empty for a CPU build; ``None`` if it does not say.
      other_python: Its extension ``_k2.*`` where that is for another Python than this one.
    """

    folder: Path
    version: str | None
    torch: str | None
    cuda: str | None
    other_python: Path | None = None

    @property
    def target(self) -> str:
        """What it was built for, in words."""
        if self.torch is None:
            return "an unknown torch"
        on = {None: "", "": " + CPU"}.get(self.cuda, f" + CUDA {self.cuda}")
        return f"torch {self.torch.split('+')[0]}{on}"


def find_k2() -> K2Install | None:
    """The k2 that ``import k2`` would take, without importing it; ``None`` without one."""
    spec = importlib.util.find_spec("k2")
    if spec is None or spec.origin is None:  # a mere folder called k2 has no origin
        return None
    folder = Path(spec.origin).parent
    version = installed_version("k2")
    torch, cuda = _built_for(folder / "torch_version.py")
    named = re.search(r"\+(?:cuda(?P<cuda>[\d.]+?)|cpu)\.torch(?P<torch>[\d.]+)$", version or "")
    if torch is None and named is not None:
        torch, cuda = named["torch"], named["cuda"] or ""
    return K2Install(folder, version, torch, cuda, _extension_of_other_python(folder.parent))


def _extension_of_other_python(site_packages: Path) -> Path | None:
    """The file ``_k2.cpython-39-*.so``, say, beside a k2 whose ``_k2`` cannot be found."""
    if importlib.util.find_spec("_k2") is not None:
        return None
    return next((path for path in sorted(site_packages.glob("_k2.*")) if _python_of(path)), None)


def _python_of(extension: Path) -> str | None:
    """``3.9`` for the names ``*.cpython-39-*.so`` and ``*.cp39-win_amd64.pyd``."""
    found = re.search(r"\.cp(?:ython-)?(\d)(\d+)", extension.name)
    return None if found is None else f"{found[1]}.{found[2]}"


def _built_for(torch_version_py: Path) -> tuple[str | None, str | None]:
    """The two constants of k2's generated ``torch_version.py``, without running it."""
    values: dict[str, str] = {}
    if torch_version_py.is_file():
        for statement in ast.parse(torch_version_py.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
                values[ast.unparse(statement.targets[0])] = str(statement.value.value)
    return values.get("k2_torch_version"), values.get("k2_torch_cuda_version")


def wheel_suffix(torch: TorchBuild) -> str:
    """How the version of a k2 wheel built for ``torch`` ends, as ``+cuda12.4.torch2.4.1``."""
    if torch.hip is not None:
        built_for = "rocm" + ".".join(torch.hip.split(".")[:2])
    else:
        built_for = "cpu" if torch.cuda is None else f"cuda{torch.cuda}"
    return f"+{built_for}.torch{torch.release}"


def examine_k2(k2: K2Install | None, torch: TorchBuild, imported: Answer) -> list[Finding]:
    """Whether k2 is there, imports, and was built for the installed torch.

    Args:
      k2: What :func:`find_k2` found.
      torch: The installed torch.
      imported: What importing k2 in a child process gave.
    """
    if k2 is None:
        return [
            warning(
                "k2",
                "not installed; recipes that call panda-icefall's own functions run without it, "
                "icefall's own recipes need k2 itself",
                _which_wheel(torch),
            )
        ]
    abi = _examine_abi(k2, torch)
    if k2.other_python is not None:
        return [_built_for_other_python(k2, torch), *([] if abi.level == OK else [abi])]
    if imported.error is not None:
        version = k2.version or "of unknown version"
        text = f"{version} at {k2.folder} cannot be imported: {imported.error}"
        findings = [problem("k2", text, _which_wheel(torch)), abi]
    else:
        findings = [_describe(k2, imported), abi]
    if torch.gpus and imported.facts.get("with_cuda") == "False":
        text = f"is built without CUDA, torch {torch.version} finds {torch.gpus[0].name}"
        findings.append(
            warning("k2 on GPU", f"k2 {text}: its functions run on CPU only", _which_wheel(torch))
        )
    return findings


def _built_for_other_python(k2: K2Install, torch: TorchBuild) -> Finding:
    assert k2.other_python is not None
    text = (
        f"{k2.version or 'of unknown version'} at {k2.folder} was built for Python "
        f"{_python_of(k2.other_python)} ({k2.other_python.name}), this is Python {_python()}: "
        "`import k2` fails with \"No module named '_k2'\""
    )
    reinstall = "pip install --no-deps --force-reinstall"
    known = WHEEL_HASHES.get((k2.version or "", _python()))
    if known is not None:
        advice = (
            f"wheels of k2 {k2.version} are all tagged py3-none-any, and pip takes any of them; "
            f"put the line `k2=={k2.version} --hash=sha256:{known}` into a file, and "
            f"`{reinstall} -r <that file>`"
        )
    else:
        tag = _python().replace(".", "")
        advice = (
            "pip takes any wheel tagged py3-none-any, as all of k2 1.23.4 are: download the one "
            f"for your Python from the index page (`unzip -l` lists _k2.cpython-{tag}-* in it) and "
            f"`{reinstall} <file>`; or, for k2 1.24 and later, {_which_wheel(torch)}"
        )
    return problem("k2", text, advice)


def _python() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def _describe(k2: K2Install, imported: Answer) -> Finding:
    facts = imported.facts
    version = k2.version or facts["__version__"]
    build = f"{facts['build_type']} build of git {facts['git_sha1'][:8]}"
    cuda = f"CUDA {facts['cuda_version']}" if facts["with_cuda"] == "True" else "CPU"
    text = f"{version}, {build}, for torch {facts['torch_version']} + {cuda}, at {k2.folder}"
    return ok("k2", text)


def _examine_abi(k2: K2Install, torch: TorchBuild) -> Finding:
    found = f"found torch {torch.release} + {torch.target}"
    if k2.torch is None:
        text = f"k2 at {k2.folder} does not say which torch it was built for; {found}"
        return warning("k2 and torch", text, _which_wheel(torch))
    is_other_release = k2.torch.split("+")[0] != torch.release
    is_other_cuda = bool(k2.cuda) and torch.hip is None and k2.cuda != torch.cuda
    if is_other_release or is_other_cuda:
        text = f"k2 {k2.version or ''} was built for {k2.target}, {found}".replace("  ", " ")
        return problem("k2 and torch", text, _which_wheel(torch))
    return ok("k2 and torch", f"k2 was built for {k2.target}; {found}")


def _which_wheel(torch: TorchBuild) -> str:
    suffix = wheel_suffix(torch)
    python = f"cp{_python().replace('.', '')}"
    kind = {"cp": "CPU", "ro": "ROCm"}.get(suffix[1:3], "CUDA")
    return (
        f"look for the wheel named k2-<version>{suffix}-{python}-... on the page of pre-compiled "
        f"{kind} wheels in k2's installation guide, or install a torch that a k2 wheel is built for"
    )


def examine_routing(applied: Answer) -> Finding:
    """Which functions ``panda_icefall.apply()`` replaces here.

    Args:
      applied: What applying it in a child process gave.
    """
    if applied.error is None:
        return ok("patched by --use-panda 1", ", ".join(applied.facts["replaced"]))
    return problem(
        "patched by --use-panda 1",
        f"nothing: {applied.error}",
        "fix the k2 import, or install a supported k2",
    )
