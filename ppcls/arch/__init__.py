"""What the networks are: build them by name, list them, load weights into them."""

from ppcls.arch.build import build_model, create_model, list_models

__all__ = ["build_model", "create_model", "list_models"]
