"""The torch-free runtime: load a bundle and generate with it."""

from tgate_export.runtime.backends.base import BackendOptions
from tgate_export.runtime.pipeline import PipelineOutput, TGatePipeline

__all__ = ["BackendOptions", "PipelineOutput", "TGatePipeline"]
