"""PyTorch checkpoints to Paddle and back; every file may come from anywhere."""

from ppcls.convert.mapping import ConversionError, paddle_to_torch, recognise, torch_to_paddle
from ppcls.convert.torch_reader import load_torch_state_dict
from ppcls.convert.torch_writer import save_torch_state_dict
from ppcls.utils.pdparams import load_paddle_state_dict

__all__ = [
    "ConversionError",
    "load_paddle_state_dict",
    "load_torch_state_dict",
    "paddle_to_torch",
    "recognise",
    "save_torch_state_dict",
    "torch_to_paddle",
]
