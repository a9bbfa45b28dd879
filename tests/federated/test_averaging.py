"""Federated averaging: what is averaged, what is kept, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from trueup.federated import broadcast_state, federated_average
from trueup.nn import ScaledWeightStandardization, parametrize_weights


def clients() -> list[nn.Sequential]:
    """Three nets with batch norm that have seen a batch or more."""
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)) for _ in range(3)]
    for times, model in enumerate(models, 1):
        for _ in range(times):
            model(torch.randn(8, 3))
    return models


def test_floating_entries_are_averaged_and_counters_taken_from_the_first() -> None:
    states = [model.state_dict() for model in clients()]
    before = copy.deepcopy(states)
    average = federated_average(states, [0.5, 0.25, 0.25])
    assert average.keys() == states[0].keys()
    for name, value in average.items():
        if name == "1.num_batches_tracked":
            assert value == 1
        else:
            want = 0.5 * states[0][name] + 0.25 * states[1][name] + 0.25 * states[2][name]
            torch.testing.assert_close(value, want)
    plain = federated_average(states)
    torch.testing.assert_close(plain["0.weight"], torch.stack([s["0.weight"] for s in states]).mean(0))
    # new tensors: training the average leaves the clients alone
    average["1.num_batches_tracked"].add_(1)
    average["0.weight"].zero_()
    for ours, theirs in zip(states, before, strict=True):
        torch.testing.assert_close(dict(ours), dict(theirs))


def test_what_is_kept_stays_on_the_server_and_on_the_clients() -> None:
    models = clients()
    states, server = [model.state_dict() for model in models], copy.deepcopy(models[0]).state_dict()
    server = {name: value + 7 for name, value in server.items()}
    keep = [name for name, module in models[0].named_modules() if isinstance(module, nn.BatchNorm1d)]
    after = federated_average(states, server=server, keep=keep)
    for state in states:
        own = broadcast_state(after, state, keep=keep)
        for name in own:
            assert torch.equal(after[name], server[name]) == name.startswith("1.")
            assert torch.equal(own[name], state[name] if name.startswith("1.") else after[name])


def test_names_to_keep_are_whole() -> None:
    states = [{"bn.bias": torch.ones(1) * i, "bn2.bias": torch.ones(1) * i} for i in (0.0, 2.0)]
    after = federated_average(states, server={"bn.bias": torch.tensor([9.0])}, keep=["bn"])
    assert (after["bn.bias"].item(), after["bn2.bias"].item()) == (9.0, 1.0)
    after = broadcast_state(states[1], states[0], keep=["bn2.bias"])
    assert (after["bn.bias"].item(), after["bn2.bias"].item()) == (2.0, 0.0)
    after = broadcast_state(states[1], states[0], keep=["bn", "bn2"])
    assert (after["bn.bias"].item(), after["bn2.bias"].item()) == (0.0, 0.0)


def test_clients_keep_their_counters_and_one_client_is_legal() -> None:
    first, _, last = (model.state_dict() for model in clients())
    average = federated_average([last])
    torch.testing.assert_close(average, dict(last))
    after = broadcast_state(average, first)
    assert after["1.num_batches_tracked"] == 1
    assert torch.equal(after["1.running_mean"], last["1.running_mean"])


def test_half_states_are_averaged_in_more_bits() -> None:
    states = [{"w": torch.tensor([60000.0], dtype=torch.float16)} for _ in range(3)]
    average = federated_average(states)["w"]
    assert average.dtype == torch.float16
    assert average.item() == 60000.0


def test_a_net_without_normalisation_leaves_nothing_behind() -> None:
    model = parametrize_weights(nn.Conv2d(2, 3, 3), ScaledWeightStandardization, gamma=1.0)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    average = federated_average([model.state_dict(), other.state_dict()])
    model.load_state_dict(average)
    assert set(average) == {name for name, _ in model.named_parameters()}


def test_a_client_with_the_share_0_takes_no_part() -> None:
    states = [{"w": torch.tensor([value])} for value in (1.0, float("nan"), 3.0)]
    assert federated_average(states, [0.5, 0.0, 0.5])["w"].item() == 2
    assert federated_average(states)["w"].isnan().all()


def test_complex_entries_are_averaged_too() -> None:
    states = [{"w": torch.tensor([value])} for value in (1 + 2j, 3 - 4j)]
    average = federated_average(states)["w"]
    torch.testing.assert_close(average, torch.tensor([2 - 1j]))
    torch.testing.assert_close(broadcast_state({"w": average}, states[0])["w"], average)


def state(**entries: list[float]) -> dict[str, Tensor]:
    return {name: torch.tensor(values) for name, values in entries.items()}


def test_what_does_not_fit_is_refused() -> None:
    one, two = state(a=[1.0], b=[1.0]), state(a=[1.0, 2.0], b=[1.0])
    with pytest.raises(ValueError, match="at least one client; got none"):
        federated_average([])
    with pytest.raises(ValueError, match="same entries; client 1 differs in b"):
        federated_average([one, state(a=[1.0])])
    with pytest.raises(ValueError, match=r"a is \(1,\), and \(2,\) for client 1"):
        federated_average([one, two])
    for weights in ([0.5], [0.5, 0.6], [1.5, -0.5], [float("nan"), 1.0], [30, 10]):
        with pytest.raises(ValueError, match=r"2 numbers >= 0 with the sum 1.*: divide numbers of samples"):
            federated_average([one, one], weights)
    with pytest.raises(ValueError, match="keep names 'bn', but the states have no such entry: a, b"):
        federated_average([one], server=one, keep=["bn"])
    with pytest.raises(ValueError, match="pass server"):
        federated_average([one], keep=["a"])
    with pytest.raises(ValueError, match=r"a is \(1,\), and \(2,\) for the server"):
        federated_average([one], server=two, keep=["a"])
    with pytest.raises(ValueError, match="the client differs in b"):
        broadcast_state(one, state(a=[1.0]))
    counted = state(a=[1.0]) | {"b": torch.tensor([2])}
    for call in (lambda: federated_average([one, counted]), lambda: broadcast_state(one, counted)):
        with pytest.raises(ValueError, match=r"b is averaged in one .*float32, and torch.int64 for"):
            call()


@pytest.mark.bad_input
def test_what_is_no_state_dict_is_refused() -> None:
    one = state(a=[1.0])
    with pytest.raises(TypeError, match=r"got a Linear: pass model.state_dict\(\)"):
        federated_average([nn.Linear(2, 2)])
    torch.testing.assert_close(federated_average(iter([one, one])), one)
    with pytest.raises(TypeError, match=r"must be a list of state dicts; got one .* pass \[client, "):
        federated_average(one)
    with pytest.raises(TypeError, match="the server must be a state dict; got a Linear"):
        broadcast_state(nn.Linear(2, 2), one)
    with pytest.raises(TypeError, match="_extra_state of client 1 must be a tensor; got a dict: leave"):
        federated_average([one, one | {"_extra_state": {}}])
    with pytest.raises(TypeError, match=r"got the text 'bn': pass \['bn'\]"):
        broadcast_state(one, one, keep="bn")
