"""Students of a trained model, of few steps or one."""
