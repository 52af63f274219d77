"""Entry points for `paddle.hub`: HarDNet by name, from a clone or straight from the repository.

    net = paddle.hub.load("path/to/clone", "hardnet68", source="local", pretrained=True)

`paddle.hub.list` shows every public name of this file, so helpers begin with an underscore.
"""

from ppcls.arch import create_model as _create_model

dependencies = ["paddle", "numpy", "cv2", "PIL", "yaml"]


def hardnet39ds(pretrained=False, class_num=1000, **kwargs):
    """HarDNet39_ds: depthwise separable, 3.5 M parameters, 0.43 GMACs at 224x224.

    pretrained: False, True (PaddleClas's published ImageNet weights), the path or address of a
    weight file (.pdparams, .pth, .safetensors), or a published name: "hardnet39ds-0e6c6fa9.pth".
    With another class_num than the weights' the classifier starts anew.
    class_num: classes; 0 gives pooled features.
    kwargs: in_channels, dropout, data_format, recompute, features_only, out_indices.

    Takes images [N, 3, H, W], RGB, normalised with ImageNet's mean and deviation; returns logits.
    """
    return _create_model("HarDNet39_ds", pretrained=pretrained, class_num=class_num, **kwargs)


def hardnet68ds(pretrained=False, class_num=1000, **kwargs):
    """HarDNet68_ds: depthwise separable, 4.2 M parameters, 0.78 GMACs at 224x224.

    pretrained: False, True (PaddleClas's published ImageNet weights), the path or address of a
    weight file (.pdparams, .pth, .safetensors), or a published name: "hardnet68ds-632474d2.pth".
    With another class_num than the weights' the classifier starts anew.
    class_num: classes; 0 gives pooled features.
    kwargs: in_channels, dropout, data_format, recompute, features_only, out_indices.

    Takes images [N, 3, H, W], RGB, normalised with ImageNet's mean and deviation; returns logits.
    """
    return _create_model("HarDNet68_ds", pretrained=pretrained, class_num=class_num, **kwargs)


def hardnet68(pretrained=False, class_num=1000, **kwargs):
    """HarDNet68: 17.6 M parameters, 4.25 GMACs at 224x224.

    pretrained: False, True (PaddleClas's published ImageNet weights), the path or address of a
    weight file (.pdparams, .pth, .safetensors), or a published name: "hardnet68-5d684880.pth".
    With another class_num than the weights' the classifier starts anew.
    class_num: classes; 0 gives pooled features.
    kwargs: in_channels, dropout, data_format, recompute, features_only, out_indices.

    Takes images [N, 3, H, W], RGB, normalised with ImageNet's mean and deviation; returns logits.
    """
    return _create_model("HarDNet68", pretrained=pretrained, class_num=class_num, **kwargs)


def hardnet85(pretrained=False, class_num=1000, **kwargs):
    """HarDNet85: 36.7 M parameters, 9.07 GMACs at 224x224.

    pretrained: False, True (PaddleClas's published ImageNet weights), the path or address of a
    weight file (.pdparams, .pth, .safetensors), or a published name: "hardnet85-a28faa00.pth".
    With another class_num than the weights' the classifier starts anew.
    class_num: classes; 0 gives pooled features.
    kwargs: in_channels, dropout, data_format, recompute, features_only, out_indices.

    Takes images [N, 3, H, W], RGB, normalised with ImageNet's mean and deviation; returns logits.
    """
    return _create_model("HarDNet85", pretrained=pretrained, class_num=class_num, **kwargs)
