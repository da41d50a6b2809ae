"""Exported networks: ONNX, torch.export and safetensors files of a checkpoint."""

from resnet_pl.export.exported import ExportedImages, ExportedNetwork, NoData

__all__ = ["ExportedImages", "ExportedNetwork", "NoData"]
