"""What pyproject.toml cannot say: a wheel carries egs/ and patches/ inside the package.

In a checkout they lie beside it, where people look for them; panda_icefall/shipped.py finds both.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = {"egs": (".md", ".py", ".yaml"), "patches": (".json", ".md", ".patch")}


class BuildWithFiles(build_py):
    """Builds the package and puts the files of those folders into it."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):  # the checkout itself is what is imported
            return
        root = Path(__file__).resolve().parent
        for folder, kinds in SHIPPED.items():
            for source in sorted((root / folder).rglob("*")):
                if source.suffix in kinds and source.is_file():
                    target = Path(self.build_lib, "panda_icefall", "_files")
                    target /= source.relative_to(root)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, target)


setup(cmdclass={"build_py": BuildWithFiles})
