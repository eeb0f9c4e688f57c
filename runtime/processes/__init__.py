"""The processes of a torchrun job."""
