"""Projections are found by name, and finding them runs nothing of the model."""

import gc
import logging
import weakref

import pytest
import torch
import toy
import toy_simple
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import panda_icefall
from panda_icefall.routing import find_projections, recording_projections
from panda_icefall.routing.model_search import ModelSearch
from panda_icefall.routing.recorded_joiners import has_recorded_joiner
from panda_icefall.routing.recorded_projections import recorded_projection

ESPNET = {"am": "am_proj", "lm": "lm_proj"}


class Noisy(nn.Module):
    def forward(self, weight):
        return weight + torch.randn_like(weight)


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Trap(nn.Module):
    """Whoever reads its weight draws a random number."""

    @property
    def weight(self):
        return torch.randn(3, 2)


def espnet_model(name="{}_proj"):
    model = nn.Module()
    model.encoder = nn.Linear(2, 3)
    model.joint = nn.Module()
    for kind in ("am", "lm"):
        setattr(model.joint, name.format(kind), nn.Linear(2, 3))
    return model


def test_finding_them_leaves_buffers_and_random_numbers_alone(k2):
    model = toy_simple.Transducer().train()
    parametrizations.spectral_norm(model.simple_am_proj)
    parametrizations.spectral_norm(model.encoder)
    parametrize.register_parametrization(model.simple_lm_proj, "weight", Noisy())
    model.trap = model.simple_am_proj_trap = Trap()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    assert list(find_projections(model)) == ["simple_am_proj", "simple_lm_proj"]
    assert find_projections(model, {"am": "encoder"}) == {"encoder": model.encoder}
    panda_icefall.apply(model=model)
    with recording_projections(model):
        pass
    del model.simple_lm_proj, model.simple_am_proj, model.trap
    model.other = nn.ModuleList([nn.LayerNorm(3)])
    with recording_projections(model):  # candidates are listed
        pass
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, value in model.state_dict().items():
        assert name.startswith("other") or torch.equal(value, state[name]), name


def test_a_normed_and_a_noisy_weight_train_as_without_panda(k2):
    def run(use_panda):
        model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)
        parametrizations.spectral_norm(model.simple_am_proj)
        parametrize.register_parametrization(model.simple_lm_proj, "weight", Noisy())
        torch.manual_seed(3)
        if use_panda:
            panda_icefall.apply(model=model)
        found = [toy_simple.loss_and_gradients(k2, model, data) for _ in range(3)]
        return found, model.state_dict()

    (dense, dense_state), (ours, state) = run(False), run(True)
    assert panda_icefall.status().simple_losses_deferred == 3
    assert panda_icefall.status().materialised == {}
    torch.testing.assert_close(ours, dense, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(state, dense_state, rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["weight_norm", "orthogonal", "twice", "old spectral", "low-rank"])
def test_a_computed_weight_has_the_form_of_one(norm):
    model = toy_simple.Transducer()
    layer = model.simple_am_proj
    if norm == "twice":
        parametrize.register_parametrization(layer, "weight", Twice())
    elif norm == "old spectral":
        nn.utils.spectral_norm(layer)
    elif norm == "low-rank":
        layer.__class__ = toy_simple.ScaledLinear
    elif hasattr(parametrizations, norm):
        getattr(parametrizations, norm)(layer)
    del layer.in_features  # then its parameters tell
    if norm == "old spectral":
        layer.in_features = toy_simple.D_AM
    assert list(find_projections(model)) == ["simple_am_proj", "simple_lm_proj"]


def test_names_that_only_begin_alike_and_what_has_no_matrix_are_not_found():
    model = nn.Module()
    model.simple_am_projection = model.my_simple_lm_proj = nn.Linear(2, 3)
    model.simple_proj = model.simple_adam_proj = nn.Linear(2, 3)
    model.simple_am_proj, model.simple_lm_proj = nn.LayerNorm(3), nn.Identity()
    assert find_projections(model) == {}


def test_twins_wrapped_models_and_a_single_projection_are_found():
    model = toy_simple.Transducer()
    assert list(find_projections(model)) == ["simple_am_proj", "simple_lm_proj"]
    model.simple_st_lm_proj = nn.Linear(2, 3)
    assert list(find_projections(model))[2] == "simple_st_lm_proj"
    wrapped = nn.Sequential(nn.Sequential(model))
    assert list(find_projections(wrapped))[:2] == ["0.0.simple_am_proj", "0.0.simple_lm_proj"]
    del model.simple_lm_proj, model.simple_st_lm_proj
    model.simple_am_proj_giga = nn.Linear(2, 3)
    assert list(find_projections(model)) == ["simple_am_proj", "simple_am_proj_giga"]
    model.simple_am_proj_giga = torch.jit.script(nn.Linear(2, 3))
    assert list(find_projections(model)) == ["simple_am_proj"]


def test_espnets_names_are_found_where_both_are_there_and_no_simple_ones():
    model = nn.Sequential(espnet_model())
    assert list(find_projections(model)) == ["0.joint.am_proj", "0.joint.lm_proj"]
    model[0].lm_proj = model[0].joint.lm_proj
    del model[0].joint.lm_proj
    assert find_projections(model) == {}
    model[0].am_proj = nn.LayerNorm(3)
    assert find_projections(model) == {}
    model[0].am_proj = nn.Linear(2, 3)
    assert list(find_projections(model)) == ["0.lm_proj", "0.am_proj"]
    model[0].simple_am_proj = nn.Linear(2, 3)
    assert list(find_projections(model)) == ["0.simple_am_proj"]


@pytest.mark.parametrize(
    "names", [ESPNET, {"am": "joint.am_proj", "lm": "0.joint.lm_proj"}], ids=["last", "dotted"]
)
def test_other_names_are_taken_as_they_are_given(names):
    model = nn.Sequential(espnet_model())
    assert list(find_projections(model, names)) == ["0.joint.am_proj", "0.joint.lm_proj"]
    assert list(find_projections(model, {"lm": names["lm"]})) == ["0.joint.lm_proj"]


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (
            {"am": "am_prj"},
            ValueError,
            r"projections: got am='am_prj', expected the name of a module of Module that has a "
            r"matrix for its weight, such as joint\.am_proj, ",
        ),
        ({"am": "m_proj"}, ValueError, "got am='m_proj'"),  # no part of a name
        ({"am": "joint"}, ValueError, "got am='joint'"),
        ({"encoder": "am_proj"}, ValueError, r"got \{'encoder': 'am_proj'\}, expected \{\"am\""),
        ({}, ValueError, r"projections: got \{\}, expected"),
        ({"am": ""}, ValueError, r"got \{'am': ''\}, expected"),
        ({"am": 3}, TypeError, r"got \{'am': 3\}, expected .* of names of modules"),
        ("am_proj", TypeError, r"got 'am_proj', expected"),
    ],
)
def test_names_that_match_nothing_are_refused_with_those_that_are_near(names, error, message):
    with pytest.raises(error, match=message):
        find_projections(espnet_model(), names)


def test_a_model_without_any_matrix_has_no_near_names():
    with pytest.raises(ValueError, match="has a matrix for its weight; it has none"):
        find_projections(nn.LayerNorm(3), {"am": "proj"})


def test_a_model_without_them_is_told_how_to_name_its_own_once(k2, caplog):
    caplog.set_level(logging.WARNING)
    panda_icefall.apply()
    data = toy.batch(k2)
    for model in (espnet_model("{}_projection"), espnet_model("{}_projection")):
        panda_icefall.apply(model=model)
        assert caplog.records == []  # it may have no simple loss
    for _ in range(2):
        am, lm = (torch.randn(*x.shape[:2], toy.C) for x in (data.am, data.lm))
        toy_simple.smoothed_loss(k2, am, lm, data)
    (message,) = [r.getMessage() for r in caplog.records]
    assert "no simple_am_proj and simple_lm_proj in Module" in message
    assert 'projections={"am": NAME, "lm": NAME}' in message
    assert "--panda-projections am=NAME,lm=NAME" in message
    assert "candidates: joint.am_projection, joint.lm_projection, encoder" in message


def test_a_model_is_searched_once_while_what_was_found_is_there(k2, monkeypatch):
    model, walks = toy_simple.Transducer(), []
    named_modules = nn.Module.named_modules

    def counted(module, *args, **kwargs):
        walks.append(module)
        return named_modules(module, *args, **kwargs)

    def recorded():
        with recording_projections(model):
            return {r.name for r in map(recorded_projection, model.modules()) if r is not None}

    panda_icefall.apply()
    assert recorded() == {"simple_am_proj", "simple_lm_proj"}
    monkeypatch.setattr(nn.Module, "named_modules", counted)
    for _ in range(3):
        with recording_projections(model):
            assert recorded_projection(model.simple_am_proj) is not None
    assert walks == []
    # Another one in its place is found, and one that is gone is not.
    model.simple_am_proj = nn.Linear(toy_simple.D_AM, toy.C)
    assert recorded() == {"simple_am_proj", "simple_lm_proj"}
    del model.simple_lm_proj
    assert recorded() == {"simple_am_proj"}
    model.simple_lm_proj = nn.Linear(toy_simple.D_LM, toy.C)
    panda_icefall.apply(model)  # looks again, for what came later
    assert recorded_projection(model.simple_lm_proj) is not None


def test_other_names_are_another_search(k2):
    model = toy_simple.Transducer()
    panda_icefall.apply()
    with recording_projections(model):
        assert recorded_projection(model.encoder) is None
    panda_icefall.apply(projections={"am": "encoder"})
    with recording_projections(model):
        assert recorded_projection(model.encoder) is not None
        assert recorded_projection(model.simple_am_proj) is None


def test_a_search_keeps_no_model_alive():
    search, model = ModelSearch(), toy_simple.Transducer()
    assert set(search.modules(model, "all", find_projections)) == {
        "simple_am_proj", "simple_lm_proj"
    }  # fmt: skip
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_joiner_is_recorded_with_the_module_that_has_it(k2):
    model = nn.Module()
    model.inner = nn.Module()
    model.joiner, model.inner.joiner = nn.Linear(2, 3), nn.Linear(2, 3)
    panda_icefall.apply()
    for _ in range(2):
        with recording_projections(model):
            assert has_recorded_joiner(model)
            assert has_recorded_joiner(model.inner)
