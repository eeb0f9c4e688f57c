"""ODE solvers: Adams with each sample's own steps, and those of other libraries."""
