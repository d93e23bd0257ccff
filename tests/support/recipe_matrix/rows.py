"""All rows of the matrix, in the order of the table."""

from recipe_matrix.row import Row
from recipe_matrix.rows_conformer import CONFORMERS, RECURRENT_AND_STREAMING
from recipe_matrix.rows_full_lattice import FULL_LATTICES
from recipe_matrix.rows_special import PROMPTS, SELF_SUPERVISED, SPEAKERS, TRANSLATION
from recipe_matrix.rows_zipformer import ZIPFORMERS, ZIPFORMERS_2022

ROWS: list[Row] = sorted(
    [
        *ZIPFORMERS,
        *ZIPFORMERS_2022,
        *CONFORMERS,
        *RECURRENT_AND_STREAMING,
        *SPEAKERS,
        *PROMPTS,
        *SELF_SUPERVISED,
        *TRANSLATION,
        *FULL_LATTICES,
    ],
    key=lambda row: (row.folder, row.train != "train", row.train),
)
