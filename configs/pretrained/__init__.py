"""Published checkpoints: what their files do not say, and the samplers that they were published with."""
