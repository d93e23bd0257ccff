"""The patch files are written as insertions only."""

from make_patches import zero_context_diff


def test_the_diff_carries_no_line_of_the_recipe():
    before = b"import os\n\n\ndef main():\n    pass\n"
    after = before.replace(b"os\n", b"os\nimport panda\n").replace(b"def", b"@panda\ndef")
    assert zero_context_diff("egs/x/train.py", before, after) == (
        b"--- a/egs/x/train.py\n+++ b/egs/x/train.py\n"
        b"@@ -1,0 +2 @@\n+import panda\n@@ -3,0 +5 @@\n+@panda\n"
    )
