"""The record of a run: identity, folder, files, checkpoints, provenance and locks."""

from fwdgrad.util.validation import missing_extra

try:
    from fwdgrad.records.checkpoints import (
        CheckpointError,
        load_checkpoint,
        read_about,
        save_checkpoint,
    )
    from fwdgrad.records.files import atomic_write
    from fwdgrad.records.jax_settings import (
        JAX_DEFAULTS,
        changed_settings,
        jax_settings,
        records_of,
        with_changed_settings,
    )
    from fwdgrad.records.locks import FolderInUseError, Hold, hold
    from fwdgrad.records.provenance import (
        OtherCodeWarning,
        code_differences,
        cpu_model,
        provenance,
        warn_of_other_code,
    )
    from fwdgrad.records.runs import (
        Metrics,
        RunRecord,
        config_identity,
        file_sums,
        read_info,
        read_run,
        run_folder,
        write_metrics,
    )
    from fwdgrad.records.serialization import (
        RecordError,
        read_json,
        read_table,
        table_sum,
        write_json,
        write_table,
    )
except ModuleNotFoundError as error:
    raise missing_extra("fwdgrad.records", error) from error

__all__ = [
    "JAX_DEFAULTS",
    "CheckpointError",
    "FolderInUseError",
    "Hold",
    "Metrics",
    "OtherCodeWarning",
    "RecordError",
    "RunRecord",
    "atomic_write",
    "changed_settings",
    "code_differences",
    "config_identity",
    "cpu_model",
    "file_sums",
    "hold",
    "jax_settings",
    "load_checkpoint",
    "provenance",
    "read_about",
    "read_info",
    "read_json",
    "read_run",
    "read_table",
    "records_of",
    "run_folder",
    "save_checkpoint",
    "table_sum",
    "warn_of_other_code",
    "with_changed_settings",
    "write_json",
    "write_metrics",
    "write_table",
]
