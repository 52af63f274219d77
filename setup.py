"""What pyproject.toml cannot say: an operator in C that is left out where nothing compiles it."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "ppcls.ops._native",
            ["ppcls/ops/batch_norm.c"],
            # GNU C contracts to fused multiply-add. Nothing here looks at floating-point traps or
            # errno; without the latter a square root needs no mathematical library.
            extra_compile_args=[
                *("-O3", "-std=gnu11", "-fopenmp-simd", "-fno-trapping-math", "-fno-math-errno")
            ],
            optional=True,
        )
    ]
)
