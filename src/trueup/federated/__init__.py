"""Learning from clients whose data stay with them."""

from trueup.federated._averaging import broadcast_state, federated_average

__all__ = ["broadcast_state", "federated_average"]
