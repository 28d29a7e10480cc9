"""Names of the machines that made records, from their provenance."""

from collections.abc import Iterable, Mapping
from typing import Any

from experiments.common import jobs

Source = Mapping[str, Any]


def device(source: Source) -> tuple[str, str]:
    """Return the kind of a source's device, "cpu" or "gpu", and its name.

    >>> device({"hardware": {"device": "gpu", "device_kind": "NVIDIA H200", "cpu": "AMD EPYC"}})
    ('gpu', 'NVIDIA H200')
    """
    hardware = source["hardware"]
    if hardware.get("device", "cpu") == "cpu":
        return "cpu", hardware.get("cpu", "unknown")
    return "gpu", hardware["device_kind"]


def names(records: Iterable[Source]) -> str:
    """Return the names of the devices that made records, each name once."""
    sources = jobs.provenance_of(records)["provenance"]
    return " and ".join(dict.fromkeys(device(source)[1] for source in sources))


def sentence(information: Mapping[str, Any]) -> str:
    """Return the sentence on where runs were trained and steps timed; "" if not recorded.

    >>> sentence({"trained_on": "NVIDIA H200", "timed_on": "AMD EPYC"})
    ' Trained on NVIDIA H200; steps timed on AMD EPYC.'
    """
    if "trained_on" not in information:
        return ""
    trained, timed = information["trained_on"], information["timed_on"]
    if trained == timed:
        return f" Trained and timed on {trained}."
    return f" Trained on {trained}; steps timed on {timed}."
