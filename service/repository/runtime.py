"""Options for ONNX Runtime, which runs a model's graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import onnxruntime as ort
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.repository.halves import left_out

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def _available(provider: str) -> str:
    available = ort.get_available_providers()
    if _PROVIDERS[provider] not in available:
        raise ValueError(f"{provider} is not available: this onnxruntime has {', '.join(available)}")
    return provider


NumThreads = Annotated[int, Field(ge=1, le=1024)]
Provider = Annotated[Literal["cpu", "cuda"], AfterValidator(_available)]
"""The execution provider. One that this onnxruntime does not have is refused."""


class RuntimeOptions(BaseModel):
    """Options for one model's graphs. Frozen.

    num_threads: threads inside one operator, 1 to 1024; only for 1 is it proven that a session's bits do not depend on
    its batch. allow_spinning: whether threads that wait for work keep their cores busy: a little faster alone, slower
    beside a server that needs those cores (microsoft/onnxruntime#13808). provider: what runs the graphs; `cuda` needs
    an onnxruntime built for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_threads: NumThreads = 1
    allow_spinning: bool = False
    provider: Provider = "cpu"

    def session_options(self) -> ort.SessionOptions:
        """Returns these options as ONNX Runtime's session options."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.num_threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(self.allow_spinning)))
        # With patterns, ONNX Runtime keeps a memory plan for every input shape it has seen, without bound.
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        return options

    def load(self, path: str) -> ort.InferenceSession:
        """Loads a graph. Raises OSError when the file cannot be read, and what ONNX Runtime raises."""
        providers = [_PROVIDERS[self.provider]]
        if self.provider != "cpu":
            providers.append(_PROVIDERS["cpu"])  # for operators that the other provider lacks
        disabled = left_out(Path(path).read_bytes()) if self.provider == "cpu" else None
        return ort.InferenceSession(path, self.session_options(), providers=providers, disabled_optimizers=disabled)


@dataclass(frozen=True, slots=True)
class Runtimes:
    """The options of every model. by_model: options that differ from `default`; only fields that were set count."""

    default: RuntimeOptions = field(default_factory=RuntimeOptions)
    by_model: Mapping[str, RuntimeOptions] = field(default_factory=lambda: MappingProxyType({}))

    def of(self, model: str) -> RuntimeOptions:
        """Returns one model's options."""
        given = self.by_model.get(model)
        return self.default if given is None else self.default.model_copy(update=given.model_dump(exclude_unset=True))
