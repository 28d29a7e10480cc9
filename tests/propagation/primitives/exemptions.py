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

# Primitives with a function in the table and no row of facts, each with the reason.
_ALGEBRA = "linear algebra: each entry depends on all others, and the linear ones have no rule"
_SPARSE = "a sparse array: entries are where its indices say"
_CALL = "a call or a program of its own, which is left to jax.jvp as a whole"
_KEY = "makes or reads a key"
_INDEXED = "changes the entries that indices name, and no rule keeps a structure there"
WITHOUT_FACTS = {
    **dict.fromkeys(
        (
            "cholesky", "eig", "eigh", "householder_product", "lu", "qr", "svd",
            "triangular_solve", "tridiagonal_solve",
        ),
        _ALGEBRA,
    ),
    **dict.fromkeys(
        (
            "bcoo_dot_general", "bcoo_dot_general_sampled", "bcoo_fromdense", "bcoo_sort_indices",
            "bcoo_spdot_general", "bcoo_sum_duplicates", "bcoo_todense", "bcoo_transpose",
            "bcsr_dot_general", "bcsr_extract", "bcsr_fromdense", "bcsr_todense", "coo_fromdense",
            "coo_matmat", "coo_matvec", "coo_todense", "csr_fromdense", "csr_matmat", "csr_matvec",
            "csr_todense", "spsolve", "todense",
        ),
        _SPARSE,
    ),
    **dict.fromkeys(
        (
            "custom_linear_solve", "custom_vmap_call", "debug_callback", "debug_print",
            "linear_call", "pallas_call", "pure_callback", "shard_map",
        ),
        _CALL,
    ),
    **dict.fromkeys(
        (
            "all_gather", "all_to_all", "ppermute", "psum", "psum_invariant", "reduce_scatter",
        ),
        _COLLECTIVE,
    ),
    **dict.fromkeys(
        (
            "random_bits", "random_fold_in", "random_gamma", "random_seed", "random_split",
            "random_unwrap", "random_wrap",
        ),
        _KEY,
    ),
    **dict.fromkeys(
        ("scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul", "scatter-sub"),
        _INDEXED,
    ),
    **dict.fromkeys(("argmax", "argmin", "bitcast_convert_type"), "has the derivative zero"),
    "ragged_dot_general": "JAX does not map its derivative",
    "stop_gradient": "has a rule of its own",
}  # fmt: skip
# Rows that say less than the derivatives do.
LINEAR_WITHOUT_A_FACT = {
    "dynamic_update_slice": "no rule keeps factors, and noise is put into each part",
    "optimization_barrier": "each output is linear in its own operand",
    "select_and_gather_add": "made by JAX's derivative of pooling",
    "select_and_scatter_add": "made by JAX's derivative of pooling",
    "select_n": "linear for one choice alone, which may depend on data",
}
SELECTING_WITHOUT_A_FACT = {
    "convert_element_type": "rounds where the other type has fewer bits",
}
APART_WITHOUT_A_FACT = {
    "conv_general_dilated": "blocks have a rule of their own",
    "custom_jvp_call": "its rule decides; blocks are kept where that is elementwise",
    "dot_general": "blocks have a rule of their own",
    "gather": "each row may look up an entry of its own",
}
