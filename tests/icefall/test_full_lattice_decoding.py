"""Decoding with the joiners of full-lattice recipes, by their own beam_search.py, while applied."""

import importlib
from contextlib import ExitStack

import pytest
import torch
from recipe_matrix.batch import X_LENS, features, forward_arguments
from recipe_matrix.building import make_model, make_params
from recipe_matrix.isolation import egs, recipe_folder_first, train_module
from recipe_matrix.row import Call
from recipe_matrix.rows import ROWS

import panda_icefall

pytestmark = [pytest.mark.k2, pytest.mark.icefall]


@pytest.mark.parametrize(
    "name",
    ["librispeech/ASR/transducer_stateless", "librispeech/ASR/transducer_stateless2"],
)
def test_greedy_search_gives_the_same_symbols_between_training_steps(name):
    (row,) = (row for row in ROWS if row.name == name)
    with ExitStack() as stack:
        for adaptation in row.adaptations:
            stack.enter_context(adaptation.around())
        stack.enter_context(recipe_folder_first(egs() / row.folder))
        train = train_module(row.train)
        params = make_params(row, train)
        model = make_model(row, train, params)
        model.device = torch.device("cpu")  # as the recipe does
        greedy_search = importlib.import_module("beam_search").greedy_search

        @torch.no_grad()
        def symbols():
            model.eval()
            encoder_out, _ = model.encoder(features(row.num_classes)[:1], torch.tensor(X_LENS[:1]))
            return greedy_search(model, encoder_out, max_sym_per_frame=2)

        expected = symbols()
        assert len(set(expected)) > 1
        with panda_icefall.patched(model):
            for _ in range(2):
                model.train()
                model(**forward_arguments(row, Call(train, params, True))).backward()
                assert symbols() == expected
            status = panda_icefall.status()
    assert (status.losses_routed, status.losses_dense, status.materialised) == (2, 0, {})
