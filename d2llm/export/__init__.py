"""A student for engines that run no Python: as ONNX graphs (extra ``onnx``), as an application of Vespa."""
