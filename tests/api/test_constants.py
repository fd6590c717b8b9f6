"""A session constant is compared with its choices as float32, as it came, before it is converted to the type of the
model."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from carousel.v1 import inference_pb2 as pb
from service.api.constants import session_constants
from service.errors import InvalidFieldError
from service.repository.manifest import SessionConstantSpec, StateSpec, TensorSpec


class OneConstant:
    model = "made"

    def __init__(self, dtype: Any) -> None:
        self.session_constants = {"loud": 0}
        spec = SessionConstantSpec(default=(0.0,), choices=((0.0,), (1.0,)))
        tensor = TensorSpec(name="loud", dtype=dtype, shape=("batch",))
        self.states = (StateSpec(name="loud", input=tensor, output="next", constant=spec),)


def given(dtype: str, number: float) -> Any:
    message = pb.Tensor(data=np.float32(number).tobytes())
    return session_constants({"loud": message}, cast(Any, OneConstant(dtype)), field="open.constants")


@pytest.mark.parametrize("dtype", ["bool", "int64", "float32"])
def test_a_choice_has_the_type_of_the_model(dtype: str) -> None:
    (value,) = given(dtype, 1.0).values()
    assert (value.dtype.name, value.item()) == (dtype, 1)


@pytest.mark.parametrize("dtype", ["bool", "int64", "float32"])
@pytest.mark.parametrize("number", [0.5, 2.0, float("nan")])
def test_another_number_is_refused(dtype: str, number: float) -> None:
    with pytest.raises(InvalidFieldError, match=r"open\.constants\['loud'\]"):
        given(dtype, number)
