"""Values of a run that would pass as numbers and train or sample nothing are refused by name."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from training.run import EncodeConfig, MachineConfig, RecordConfig

FLOATS = [
    (RecordConfig, "sample_guidance"),
    (RecordConfig, "sample_shift"),
    (EncodeConfig, "buffer_gb"),
    (EncodeConfig, "patience_s"),
    (EncodeConfig, "most_bad_clips"),
    (MachineConfig, "memory_gb"),
    (MachineConfig, "peak_tflops"),
]


@pytest.mark.parametrize(("model", "name"), FLOATS, ids=lambda each: each if isinstance(each, str) else each.__name__)
@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0])
def test_what_is_no_number_is_refused_by_name(model: type[BaseModel], name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        model.model_validate({name: value})
