"""The options of XLA for all tests, to be set before JAX is imported."""

# So many devices; and less optimised code, which takes half the time to compile.
FLAGS = (
    "--xla_force_host_platform_device_count={}"
    " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
