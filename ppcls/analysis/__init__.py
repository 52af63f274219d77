"""What a network costs: parameters, MACs, memory traffic (CIO, MoC), and what a machine allows."""

from ppcls.analysis.cost import LayerCost, NetworkCost
from ppcls.analysis.counting import analyze

__all__ = ["LayerCost", "NetworkCost", "analyze"]
