"""Primitives that JAX has a derivative of and the table does not use, each with the reason."""

_REFERENCES = "reads or writes a mutable array: the whole loss goes to jax.jvp (test_propagation)"
_COLLECTIVE = "a collective of shard_map, which is left to jax.jvp as a whole (test_sharding)"
_REFUSED = "JAX has a rule that raises: there is no derivative in forward mode"
_NO_VALUE = "has no output that could have a tangent"
_INTERNAL = "made by JAX's own transformations or kernels, never by a loss that is traced"
_KEYS = "converts between arrays and arrays of keys, which have no tangents"

EXEMPT = {
    **dict.fromkeys(
        (
            "accum_grad_in_ref", "addupdate", "empty_ref", "free_ref", "freeze", "get",
            "get_global", "masked_load", "masked_swap", "new_ref", "run_state", "swap",
            "with_memory_space_constraint", "box_get", "box_set", "new_box", "log_extend",
            "log_read", "new_log",
        ),
        _REFERENCES,
    ),
    **dict.fromkeys(
        (
            "all_gather_invariant", "all_gather_reduced", "pbroadcast", "pbroadcast_dynamic",
            "preduced", "ragged_all_to_all", "reduced_vary_cast", "reduced_vary_cast_p",
            "unreduced_psum", "unreduced_reduce_scatter", "vary_unreduced_cast",
            "vary_unreduced_cast_p", "reshard", "relayout",
        ),
        _COLLECTIVE,
    ),
    **dict.fromkeys(("composite", "ffi_call", "io_callback"), _REFUSED),
    **dict.fromkeys(("check", "dce_sink", "inspect_sharding"), _NO_VALUE),
    **dict.fromkeys(
        ("mpmd_map", "program_order", "remat_opt", "stage", "xla_metadata_call"), _INTERNAL
    ),
    **dict.fromkeys(("from_edtype", "to_edtype"), _KEYS),
    "call_hi_primitive": "made under jax_custom_vjp3 or jax_remat3 alone (test_jax_internals)",
    "bcoo_extract": "JAX's batching rule of it fails when it is lowered",
    "eval_jaxpr": "before JAX 0.11 it is traced to closed_call, which is covered",
}  # fmt: skip
# What some versions cover and others do not.
BY_VERSION = {"eval_jaxpr"}
