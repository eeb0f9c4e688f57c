"""ControlNets beside models of the other families."""
