"""For scripts that run a tool: networks whose batch norm keeps its statistics.

Each rank's batch norm sees only its own samples; without that, gradients must agree exactly.
"""


def freeze():
    """Let networks built from now on have such a batch norm. Paddle must be loaded before."""
    from paddle import nn

    from ppcls.arch.backbone import hardnet_block

    def batch_norm(channels, data_format):
        options = {"data_format": data_format, "use_global_stats": True}
        return nn.BatchNorm2D(channels, momentum=0.9, epsilon=1e-5, **options)

    hardnet_block.batch_norm = batch_norm
