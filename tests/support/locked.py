"""Files that must not be read, also where the tests run as root, whom no mode keeps out."""

from pathlib import Path


def lock(monkeypatch, path):
    """Let nobody read a file, or look below a folder."""

    def forbidding(original):
        def method(other, *args, **kwargs):
            if path in other.absolute().parents or (original is opens and other.absolute() == path):
                raise PermissionError(13, "Permission denied", str(other))
            return original(other, *args, **kwargs)

        return method

    opens = Path.open
    for name in ("stat", "open"):
        monkeypatch.setattr(Path, name, forbidding(getattr(Path, name)))
    return path
