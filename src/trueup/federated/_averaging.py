"""Federated averaging: the server's state is the mean of its clients' states.

Problem: the data of several clients must not be brought together. Idea: each client trains a copy of the
server's model on its own data; the server averages the copies and sends the mean back. One round is

    server = sum_k p_k client_k        client_k = server

FedAvg averages every entry of the state dict, including the running statistics of normalization layers.
FedBN leaves all entries of the normalization layers where they are (`keep`). FedWon has no normalization
layers.

McMahan, Moore, Ramage, Hampson, Arcas 2017, arXiv 1602.05629; Li, Jiang, Zhang, Kamp, Dou 2021, arXiv
2102.07623. Counters are not averaged: as in FedBN's code, the server takes those of the first client.

Like `torch.nn.Module.state_dict`, both functions return an `OrderedDict` whose `_metadata` holds the
version of each module. Without it, `load_state_dict` would take the state for an old one and migrate it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

__all__ = ["broadcast_state", "federated_average"]

State = OrderedDict[str, Tensor]


@torch.no_grad()
def federated_average(
    clients: Iterable[Mapping[str, Tensor]],
    weights: Sequence[float] | None = None,
    *,
    server: Mapping[str, Tensor] | None = None,
    keep: Iterable[str] = (),
) -> State:
    """Average the clients' state dicts into the server's new one.

    Args:
        clients: at least one state dict; all have the same names and shapes.
        weights: share of each client, such as its share of the samples: at least 0, with sum 1. `None`
            gives all clients the same share. A client with share 0 has no influence, so that one that
            diverged can be left out; it must still have the same names and shapes.
        server: the server's previous state, from which it keeps entries; required with `keep`.
        keep: names of modules or entries that are not averaged.

    Returns:
        New tensors, on the devices of the first client that takes part. Floating-point and complex entries
        are averaged in double precision and have the dtype to which torch promotes those of the clients;
        others, such as `num_batches_tracked`, are the first client's. The `_metadata` of a module comes
        from the states that its entries come from; a plain dict has none and is taken to have the others'
        version.

    Raises:
        ValueError: no client; clients with different names or shapes; an entry that is an integer for some
            clients only; weights that are negative, too few or too many, or whose sum is not 1; a name in
            `keep` that no entry has; `keep` without `server`, or with other shapes there; different
            versions of a module.
        TypeError: one state dict in the place of a list; a client that is not a state dict, or has an entry
            that is not a tensor.

    Source: algorithm 1 of McMahan et al. 2017; with `keep`, FedBN.

    >>> clients = [{"fc.weight": torch.tensor([1.0]), "bn.bias": torch.tensor([5.0])},
    ...            {"fc.weight": torch.tensor([3.0]), "bn.bias": torch.tensor([7.0])}]
    >>> dict(federated_average(clients, weights=[0.25, 0.75]))
    {'fc.weight': tensor([2.5000]), 'bn.bias': tensor([6.5000])}
    >>> dict(federated_average(clients, server={"bn.bias": torch.tensor([0.0])}, keep=["bn"]))
    {'fc.weight': tensor([2.]), 'bn.bias': tensor([0.])}
    """
    if isinstance(clients, Mapping):
        raise TypeError("clients must be a list of state dicts; got one state dict: pass [client, ...]")
    clients = list(clients)
    if not clients:
        raise ValueError("federated_average needs the state of at least one client; got none")
    shares = [1 / len(clients)] * len(clients) if weights is None else [float(w) for w in weights]
    if len(shares) != len(clients) or min(shares) < 0 or not abs(sum(shares) - 1) <= 1e-6:
        raise ValueError(
            f"weights must be {len(clients)} numbers >= 0 with sum 1, one per client; got {shares}: divide "
            "the numbers of samples by their sum"
        )
    parts = [(share, f"client {i}", clients[i]) for i, share in enumerate(shares) if share]
    first = parts[0][2]
    _check_alike(first, first, parts[0][1])
    for number, client in enumerate(clients):
        _check_alike(first, client, f"client {number}")
    kept = _kept(first, keep)
    if kept and (server is None or not kept <= server.keys()):
        raise ValueError(
            "keep names entries that the server keeps: pass server, its state with these entries"
        )
    if server is not None:
        kept_there = {name: server[name] for name in kept}
        _check_alike({name: first[name] for name in kept}, kept_there, "the server")

    average: State = OrderedDict()
    for name, value in first.items():
        if name in kept:
            assert server is not None  # checked above
            average[name] = server[name].clone()
        elif _is_averaged(value):
            double = torch.complex128 if any(c[name].is_complex() for _, _, c in parts) else torch.float64
            total = torch.zeros_like(value, dtype=double)
            for share, _, client in parts:
                total = total + client[name].to(total) * share
            average[name] = total.to(reduce(torch.promote_types, (c[name].dtype for _, _, c in parts)))
        else:
            average[name] = value.clone()
    sources = [(who, client, first.keys() - kept) for _, who, client in parts]
    return _with_metadata(average, *sources, ("the server", server or {}, kept))


@torch.no_grad()
def broadcast_state(
    server: Mapping[str, Tensor], client: Mapping[str, Tensor], *, keep: Iterable[str] = ()
) -> State:
    """Return a client's new state dict: the server's, except counters and what the client keeps.

    Args:
        server: the state dict that `federated_average` returned.
        client: the client's own state dict.
        keep: names of modules or entries that the client keeps.

    Returns:
        New tensors, with the `_metadata` of the states that they come from.

    Raises:
        ValueError, TypeError: states that do not match, as in `federated_average`; a name in `keep` that no
            entry has.

    >>> server = {"fc.weight": torch.tensor([2.0]), "bn.bias": torch.tensor([0.0])}
    >>> client = {"fc.weight": torch.tensor([1.0]), "bn.bias": torch.tensor([5.0])}
    >>> dict(broadcast_state(server, client, keep=["bn"]))
    {'fc.weight': tensor([2.]), 'bn.bias': tensor([5.])}
    """
    _check_alike(server, server, "the server")
    _check_alike(server, client, "the client")
    kept = _kept(client, keep)
    own = {name for name, entry in client.items() if name in kept or not _is_averaged(entry)}
    state = OrderedDict((name, (client if name in own else server)[name].clone()) for name in client)
    return _with_metadata(state, ("the client", client, own), ("the server", server, client.keys() - own))


def _is_averaged(entry: Tensor) -> bool:
    """Return whether an entry is averaged; counters and flags are not."""
    return entry.is_floating_point() or entry.is_complex()


def _kept(state: Mapping[str, Tensor], names: Iterable[str]) -> set[str]:
    """Return the entries that belong to the named modules or have one of the names."""
    if isinstance(names, str):
        raise TypeError(f"keep must hold names; got the text {names!r}: pass [{names!r}]")
    kept: set[str] = set()
    for name in names:
        entries = {entry for entry in state if entry == name or entry.startswith(f"{name}.")}
        if not entries:
            raise ValueError(f"keep names {name!r}, but the states have no such entry: {', '.join(state)}")
        kept |= entries
    return kept


def _with_metadata(state: State, *sources: tuple[str, Mapping[str, Tensor], Iterable[str]]) -> State:
    """Add the metadata of the sources, given as (name for errors, state, names of the entries it gave)."""
    merged: OrderedDict[str, dict[str, Any]] = OrderedDict()
    givers: dict[str, str] = {}
    for who, source, entries in sources:
        given = getattr(source, "_metadata", None)
        if given is None:
            continue
        # A module may migrate the entries of its submodules too, and the whole model may migrate all.
        inside = {entry[:i] for entry in entries for i, letter in enumerate(entry) if letter == "."}
        for module in sorted(inside | {""} if entries else ()):
            local = dict(given.get(module, {}))
            version, before = (m.get("version") for m in (local, merged.setdefault(module, local)))
            if version != before:
                raise ValueError(
                    f"states must hold one version of a module; {module or 'the model'} has version {before} "
                    f"for {givers[module]}, and {version} for {who}: load the older state into a model, "
                    "which migrates it, and pass what its state_dict() then returns"
                )
            givers.setdefault(module, who)
    known: OrderedDict[str, dict[str, Any]] = OrderedDict()  # in the order of the states, as in torch
    for _, source, _ in sources:
        for module, local in (getattr(source, "_metadata", None) or {}).items():
            known.setdefault(module, merged.get(module, dict(local)))
    if known:
        state._metadata = known  # type: ignore[attr-defined]
    return state


def _check_alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor], who: str) -> None:
    """Raise an error unless `other`, the state of `who`, has the entries and shapes of `one`."""
    if not isinstance(other, Mapping):
        raise TypeError(f"{who} must be a state dict; got a {type(other).__name__}: pass model.state_dict()")
    for name, entry in other.items():
        if not isinstance(entry, Tensor):
            raise TypeError(
                f"{name} of {who} must be a tensor; got a {type(entry).__name__}: leave it out by "
                f"state.pop({name!r}), which keeps the state's versions"
            )
    if one.keys() != other.keys():
        differing = ", ".join(sorted(one.keys() ^ other.keys()))
        raise ValueError(f"states must have the same entries; {who} differs in {differing}")
    for name in one:
        if one[name].shape != other[name].shape:
            raise ValueError(
                f"states must have the same shapes; {name} is {tuple(one[name].shape)}, and "
                f"{tuple(other[name].shape)} for {who}"
            )
        if _is_averaged(one[name]) != _is_averaged(other[name]):
            raise ValueError(
                f"{name} is averaged in one state and counted in another; it is {one[name].dtype}, and "
                f"{other[name].dtype} for {who}: convert one of them"
            )
