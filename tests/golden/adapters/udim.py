"""SAM and ASAM against davda54/sam. The steps of UDIM itself come with the method."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden.reference import Case
from trueup.optim import SAM


def sam(case: Case) -> dict[str, object]:
    params, hyper = {name: torch.tensor(value) for name, value in case.params.items()}, case.hyper
    (features, inputs), (classes, _) = params["feat_weight"].shape, params["clf_weight"].shape
    model = nn.Sequential(nn.Flatten(), nn.Linear(inputs, features), nn.Tanh(), nn.Linear(features, classes))
    names = {"1.weight": "feat_weight", "1.bias": "feat_bias", "3.weight": "clf_weight", "3.bias": "clf_bias"}
    model.to(params["feat_weight"].dtype)
    model.load_state_dict({own: params[theirs] for own, theirs in names.items()})
    base = torch.optim.SGD(model.parameters(), hyper["lr"], hyper["momentum"])
    optimizer = SAM(base, hyper["rho"], adaptive=bool(hyper["adaptive"]))

    losses: list[Tensor] = []
    returned: dict[str, object] = {}
    for t, (x, y) in enumerate(zip(case.inputs["x"], case.inputs["y"], strict=True)):
        x, y = torch.tensor(x), torch.tensor(y)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            base.zero_grad()
            losses.append(F.cross_entropy(model(x), y))
            losses[-1].backward()
            return losses[-1]

        optimizer.step(closure)
        for own, theirs in names.items():
            returned[f"out.step{t}_{theirs}"] = model.get_parameter(own).detach().clone()
    return {**returned, "out.losses": torch.stack(losses).view(-1, 2)}


KINDS = {"sam": sam}
