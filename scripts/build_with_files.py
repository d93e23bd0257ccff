"""What pyproject.toml cannot say: a wheel carries egs/ and patches/ inside the package.

In a checkout they lie beside it, where people look for them; panda_icefall/shipped.py finds both.
setuptools finds this class by `tool.setuptools.cmdclass`.
"""

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = {"egs": (".md", ".py", ".yaml"), "patches": (".json", ".md", ".patch")}


def shipped_files() -> list[Path]:
    """Those of the folders that a wheel carries, relative to the checkout."""
    return [
        path.relative_to(ROOT)
        for folder, kinds in SHIPPED.items()
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in kinds and path.is_file()
    ]


class BuildWithFiles(build_py):
    """Builds the package and puts the files of those folders into it."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):  # the checkout itself is what is imported
            return
        for name in shipped_files():
            target = Path(self.build_lib, "panda_icefall", "_files", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)

    def get_source_files(self) -> list[str]:
        """Of an sdist, from which a wheel is made too."""
        own = Path(__file__).resolve().relative_to(ROOT)
        return [*super().get_source_files(), str(own), *map(str, shipped_files())]
