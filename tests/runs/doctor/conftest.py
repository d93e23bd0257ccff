"""Packages that are not what they claim, put first on the path for one test."""

import pytest


@pytest.fixture
def fake_package(tmp_path, monkeypatch):
    """Writes an importable package with package metadata; gives its folder."""
    folder = tmp_path / "fake-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def write(name, version=None, **files):
        package = folder / name
        package.mkdir(exist_ok=True)
        for stem, text in {"__init__": "", **files}.items():
            (package / f"{stem}.py").write_text(text)
        if version is not None:
            info = folder / f"{name}-{version}.dist-info"
            info.mkdir()
            info.joinpath("METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            )
        return package

    return write
