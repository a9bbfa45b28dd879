"""Federated averaging: what is averaged, what is kept, what is refused."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

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


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_first_client_with_the_share_0_decides_nothing(device: str) -> None:
    w, n = torch.tensor([float("nan")], dtype=torch.float16), torch.tensor(7)
    diverged = OrderedDict(w=w.to(device), n=n.to(device))
    diverged._metadata = {"": {"version": 1}}
    sound = OrderedDict(w=torch.tensor([1 / 3]), n=torch.tensor(100))
    sound._metadata = {"": {"version": 2}}
    average = federated_average([diverged, sound], [0, 1])
    assert average["w"].dtype == torch.float32
    assert torch.equal(average["w"], torch.tensor([1 / 3]))
    assert average["n"] == 100
    assert average._metadata == {"": {"version": 2}}
    with pytest.raises(ValueError, match=r"w is \(1,\), and \(2,\) for client 0"):  # a mistake all the same
        federated_average([diverged | {"w": torch.zeros(2)}, sound], [0, 1])


@pytest.mark.parametrize("order", [1, -1])
def test_clients_of_different_types_and_devices_lose_nothing(order: int) -> None:
    wide, narrow = torch.tensor([1 / 3 + 1e-6, 1e30]), torch.tensor([1 / 3, 1.0], dtype=torch.float16)
    average = federated_average([{"w": wide}, {"w": narrow}][::order])["w"]
    assert average.dtype == torch.float32
    torch.testing.assert_close(average, (wide.double() + narrow.double()).div(2).float(), rtol=0, atol=0)
    halves = [{"w": torch.tensor([x], dtype=d)} for x, d in ((1e30, torch.bfloat16), (1.0, torch.float16))]
    assert federated_average(halves[::order])["w"].isfinite().all()
    mixed = [{"w": torch.tensor([2.0])}, {"w": torch.tensor([4j])}]
    assert federated_average(mixed[::order])["w"].item() == 1 + 2j
    eighths = [{"w": torch.tensor([x]).to(torch.float8_e4m3fn)} for x in (1.0, 2.0)]
    assert federated_average(eighths[::order])["w"].float() == 1.5
    elsewhere = [{"w": torch.zeros(2, device="meta")}, {"w": wide}]
    assert federated_average(elsewhere)["w"].device.type == "meta"  # the first client's


def test_parameters_of_a_graph_are_averaged_outside_it() -> None:
    kept = nn.Linear(2, 2).state_dict(keep_vars=True)
    assert kept["weight"].requires_grad
    for state in (
        federated_average([kept, kept]),
        federated_average([kept], server=kept, keep=["bias"]),
        broadcast_state(kept, kept, keep=["bias"]),
    ):
        assert not any(entry.requires_grad for entry in state.values())


class Halved(nn.Module):
    """Of version 2, which stores half of what version 1 did."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args) -> None:
        if local_metadata.get("version", 1) < 2:
            state_dict[prefix + "w"] = state_dict[prefix + "w"] / 2
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def versioned() -> nn.Sequential:
    return nn.Sequential(Halved(), nn.BatchNorm1d(1), nn.ReLU())


def test_a_module_does_not_migrate_its_own_new_state() -> None:
    model = versioned()
    state = model.state_dict()
    plain = dict(state)
    after = [
        federated_average([state, state]),
        federated_average([plain, state]),  # a plain dict says nothing of versions
        federated_average([state], server=state, keep=["0"]),
        federated_average([plain], server=state, keep=["0"]),
        federated_average([state], server=plain, keep=["1"]),
        broadcast_state(state, state),
        broadcast_state(state, plain),
        broadcast_state(plain, state),
        broadcast_state(plain, state, keep=["0"]),
    ]
    for new in after:
        assert type(new) is type(state)
        assert new._metadata == state._metadata  # in the same order
        assert pickle.loads(pickle.dumps(new))._metadata == new._metadata
        model.load_state_dict(new)
        assert model[0].w == 1
        # its own: loading by assignment writes into what it is given
        fresh = copy.deepcopy(model)
        fresh.load_state_dict(new, assign=True)
    assert "assign_to_params_buffers" not in state._metadata[""]
    assert not hasattr(federated_average([plain, plain]), "_metadata")


def of_version(version: int | None, module: str = "0") -> OrderedDict[str, Tensor]:
    state = versioned().state_dict()
    state._metadata[module] = {} if version is None else {"version": version}
    return state


def test_states_of_different_versions_are_refused() -> None:
    old, new = of_version(1), of_version(2)
    with pytest.raises(ValueError, match="0 has version 2 for client 0, and 1 for client 2: load the older"):
        federated_average([new, new, old])
    with pytest.raises(ValueError, match="0 has version None for client 0, and 2 for client 1"):
        federated_average([of_version(None), new])
    with pytest.raises(ValueError, match="the model has version 3 for client 0, and 1 for client 1"):
        federated_average([of_version(3, ""), new])
    with pytest.raises(ValueError, match="1 has version 1 for the client, and 2 for the server"):
        broadcast_state(new, of_version(1, "1"))  # statistics of one, the counter of the other
    federated_average([new, new, old], [0.5, 0.5, 0.0])
    # what has no entries has nothing to migrate
    federated_average([of_version(5, "2"), new])


def test_what_is_kept_keeps_its_version() -> None:
    old, new = of_version(1), of_version(2)
    after = federated_average([new, new], server=old, keep=["0"])
    assert dict(after._metadata) == dict(old._metadata)
    assert broadcast_state(new, old, keep=["0"])._metadata["0"] == {"version": 1}
    assert broadcast_state(old, new, keep=["0"])._metadata["0"] == {"version": 2}
    with pytest.raises(ValueError, match="1 has version 2 for client 0, and 7 for the server"):
        federated_average([new], server=of_version(7, "1"), keep=["1.bias"])


def test_versions_stay_when_an_entry_is_left_out_as_the_error_says() -> None:
    class Extra(Halved):
        def get_extra_state(self) -> dict[str, int]:
            return {"seen": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    model = Extra()
    state = model.state_dict()
    with pytest.raises(TypeError, match=r"got a dict: leave it out by state.pop\('_extra_state'\)"):
        federated_average([state])
    state.pop("_extra_state")
    model.load_state_dict(federated_average([state]), strict=False)
    assert model.w == 1


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
        with pytest.raises(ValueError, match=r"2 numbers >= 0 with sum 1.*: divide the numbers of samples"):
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
