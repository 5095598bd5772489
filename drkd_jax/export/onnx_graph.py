"""Builds an ONNX graph; nodes refer to each other by the names of their values."""

from __future__ import annotations

from typing import Any

import numpy as np

#: Version of ONNX's operators.
OPSET = 21


class Graph:
    """Nodes and constants in execution order.

    Values are numbered, such as ``"node/3"``; models from another converter keep their names after
    a prefix.
    """

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._models = 0

    def constant(self, value: Any) -> str:
        """Adds a constant from a NumPy array, or a value convertible to one; returns its name."""
        from onnx import numpy_helper

        name = f"constant/{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Adds a node with one output.

        Args:
            kind: ONNX's name of the operator.
            inputs: names of values, or arrays, which become constants.
            attributes: of the operator.

        Returns:
            The name of its output.
        """
        from onnx import helper

        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        output = f"node/{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def cast(self, value: str, dtype: Any) -> str:
        """Converts a value to another NumPy dtype."""
        from onnx import helper

        return self.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def take_in(self, model: Any, inputs: list[str]) -> list[str]:
        """Adds all nodes of a model.

        Args:
            model: an `onnx.ModelProto`; it is changed.
            inputs: the names of its inputs in this graph, in order.

        Returns:
            The names of its outputs here.
        """
        given = dict(zip((v.name for v in model.graph.input), inputs, strict=True))
        prefix = f"model/{self._models}/"
        self._models += 1

        def name(old: str) -> str:
            return given.get(old, prefix + old) if old else ""

        for value in model.graph.initializer:
            value.name = name(value.name)
        for node in model.graph.node:
            node.name = ""
            for names in (node.input, node.output):
                names[:] = [name(old) for old in names]
        self._constants.extend(model.graph.initializer)
        self._nodes.extend(model.graph.node)
        return [name(value.name) for value in model.graph.output]

    def model(self, inputs: dict[str, Any], outputs: dict[str, tuple[str, Any]]) -> Any:
        """The complete, checked model.

        Args:
            inputs: name to an array's shape and dtype.
            outputs: name to (value, the array's shape and dtype).

        Returns:
            An `onnx.ModelProto`.
        """
        import onnx
        from onnx import helper

        def info(name: str, like: Any) -> Any:
            dtype = helper.np_dtype_to_tensor_dtype(np.dtype(like.dtype))
            return helper.make_tensor_value_info(name, dtype, like.shape)

        for name, (value, like) in outputs.items():
            node = helper.make_node("Identity", [self.cast(value, like.dtype)], [name])
            self._nodes.append(node)
        read = {name for node in self._nodes for name in node.input}
        graph = helper.make_graph(
            self._nodes,
            "detector",
            [info(name, like) for name, like in inputs.items()],
            [info(name, like) for name, (_, like) in outputs.items()],
            [value for value in self._constants if value.name in read],
        )
        # The format version from the operators' year: older runtimes refuse later ones.
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10
        )
        onnx.checker.check_model(model)
        return model
