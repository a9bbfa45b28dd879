"""The protocol of the test-time adaptation studies: rows, corruptions, streams, fresh nets, contrasts."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from trueup.lab._contrasts import SeedCells
from trueup.lab._run import Run
from trueup.studies import alpha_bn, unmix_tns
from trueup.studies._protocols import shifted_streams as protocol

SETTINGS = protocol.SCALES["smoke"] | {"epochs": 2, "stream": "sorted", "batch": 48}


def at(kind="report", **settings):
    return Run("alpha-bn", "smoke", kind, "", SETTINGS | settings, seed=3)


@pytest.fixture(scope="module")
def inputs():
    stages = {stage.name: stage.build(at("stage")) for stage in protocol.STAGES}
    return {name: {k: v.numpy() for k, v in arrays.items()} for name, arrays in stages.items()}


@pytest.fixture
def run(inputs):
    return dataclasses.replace(at(), inputs=inputs)


class Recorder(nn.Module):
    """Passes batches on, and keeps them."""

    def __init__(self, net):
        super().__init__()
        self.net, self.batches = net, []

    def forward(self, x):
        self.batches.append(x)
        return self.net(x)


def follow(run):
    """Return the result and a recorder for each corruption."""
    recorders = []

    def adapt(net):
        recorders.append(Recorder(net))
        return recorders[-1]

    return protocol.follow_streams(run, adapt), recorders


def test_trials_see_other_corruptions_and_no_test_rows():
    report, trial = at(), at("tune")
    (X, _, n), (X_trial, _, n_trial) = protocol._rows(report), protocol._rows(trial)
    rows = {image.numpy().tobytes() for image in X[n:]}
    assert not rows & {image.numpy().tobytes() for image in X_trial}
    assert (n, len(X) - n, n_trial, len(X_trial) - n_trial) == (600, 128, 472, 128)
    shifted = {kind: set(protocol.STAGES[1].build(at(kind))) for kind in ("report", "tune")}
    assert shifted["report"] & shifted["tune"] == {"target"}


def test_every_arm_gets_the_same_images_in_the_order_of_the_stream(run):
    _, recorders = follow(run)
    _, again = follow(run)
    target = torch.tensor(run.inputs["shifted"]["target"])
    for recorder, other, name in zip(recorders, again, protocol.REPORTED, strict=True):
        assert [len(batch) for batch in recorder.batches] == [48, 48, 32]
        seen = torch.cat(recorder.batches)
        assert torch.equal(seen, torch.cat(other.batches))
        images = torch.tensor(run.inputs["shifted"][name])
        place = torch.tensor([int((images == x).flatten(1).all(1).nonzero()[0]) for x in seen])
        assert sorted(place.tolist()) == list(range(128))
        assert target[place].diff().min() >= 0


def test_the_measure_is_that_of_the_source_net_where_nothing_adapts(run):
    found, _ = follow(run)
    net, target = protocol.source_net(run), torch.tensor(run.inputs["shifted"]["target"])
    accuracies, losses = [], []
    with torch.no_grad():
        for name in protocol.REPORTED:
            log_p = net(torch.tensor(run.inputs["shifted"][name])).log_softmax(1).numpy()
            accuracies.append(np.mean(log_p.argmax(1) == target.numpy()))
            losses.append(-np.mean([row[label] for row, label in zip(log_p, target, strict=True)]))
            assert found[f"accuracy_{name}"] == pytest.approx(accuracies[-1])
    assert found["accuracy"] == pytest.approx(np.mean(accuracies))
    assert found["nll"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_every_corruption_meets_the_source_net_anew(run):
    def adapt(net):
        assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), source.values(), strict=True))
        for parameter in net.parameters():
            nn.init.zeros_(parameter)
        return net

    source = protocol.source_net(run).state_dict()
    assert protocol.follow_streams(run, adapt)["nll"] == pytest.approx(np.log(10))


def test_a_stream_of_single_images_can_be_shorter(run):
    shorter = dataclasses.replace(run, settings=run.settings | {"batch": 1, "images": {1: 20}})
    _, recorders = follow(shorter)
    assert [len(r.batches) for r in recorders] == [20] * 4


@pytest.mark.parametrize(("weight", "end"), [(0.0, "batch"), (1.0, "nothing")])
def test_the_ends_of_the_mixture_are_the_other_arms(run, weight, end):
    settings = run.settings | {"source_weight": weight}
    mixed, other = (
        alpha_bn.cell(dataclasses.replace(run, kind="tune", settings=settings | {"adapt": how}))
        for how in ("mixed", end)
    )
    assert mixed["nll"] == pytest.approx(other["nll"], rel=1e-4)


def test_fixed_weights_are_followed_in_a_report_only(run):
    settings = run.settings | {"adapt": "mixed", "source_weight": 0.3}
    report, trial = (
        alpha_bn.cell(dataclasses.replace(run, kind=kind, settings=settings)) for kind in ("report", "tune")
    )
    assert report["fixed"][report["weight"].index(0.3)] == report["accuracy"] == trial["accuracy"]
    assert "fixed" not in trial


def test_components_start_alike_in_every_corruption_and_follow_the_batch_size(run):
    settings = run.settings | {"adapt": "unmix", "components": 4, "batch": 16}
    run = dataclasses.replace(run, settings=settings)
    first, second = (unmix_tns.adapt(protocol.source_net(run), run) for _ in range(2))
    layers = [m for m in first.modules() if hasattr(m, "num_components")]
    assert len(layers) == 3
    assert {layer.num_components for layer in layers} == {4}
    state = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in state)


def cells(**accuracy):
    """Return the cells of one seed from the accuracies on iid and on sorted streams."""
    orders = ("iid", "sorted")
    return SeedCells(
        [
            (arm, {"stream": stream}, {"accuracy": value}, {})
            for arm, values in accuracy.items()
            for stream, value in zip(orders, values, strict=True)
        ],
        {"accuracy": True},
    )


def test_to_choose_an_end_in_each_condition_is_no_gain():
    contrast = protocol.beats_all("alpha", ("source", "batch"), {})
    assert contrast.value(cells(alpha=(0.8, 0.5), source=(0.5, 0.5), batch=(0.8, 0.2))) == 0
    assert contrast.value(cells(alpha=(0.9, 0.5), source=(0.5, 0.5), batch=(0.8, 0.2))) == pytest.approx(0.05)
    in_one = protocol.beats_all("alpha", ("source", "batch"), {"stream": "sorted"})
    assert in_one.value(cells(alpha=(0.9, 0.4), source=(0.5, 0.5), batch=(0.8, 0.2))) == pytest.approx(-0.1)


def test_the_drop_is_positive_where_the_order_costs_accuracy():
    contrast = protocol.drop("batch", "sorted", {})
    assert contrast.value(cells(batch=(0.8, 0.2))) == pytest.approx(0.6)
