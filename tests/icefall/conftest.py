"""The outcomes of the recipe matrix, and the option that writes them into egs/README.md."""

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--write-matrix",
        action="store_true",
        help="write the recipe matrix into egs/README.md; every row has to run",
    )


@pytest.fixture(scope="session")
def outcomes(request):
    """Row name -> outcome, filled by the tests."""
    # Imported here: it needs torch, and the option has to be known without.
    from recipe_matrix import table
    from recipe_matrix.rows import ROWS

    found = {}
    yield found
    if request.config.getoption("--write-matrix", default=False):
        missing = [row.name for row in ROWS if row.name not in found]
        assert not missing, f"--write-matrix: rows without an outcome: {missing}"
        table.write([found[row.name] for row in ROWS], table.versions())
