"""A run of a ControlNet: its frozen model, its network, and other ControlNets that are added."""
