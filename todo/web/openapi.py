"""Changes to what apispec writes into the OpenAPI document."""

from copy import deepcopy
from typing import Any

from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter

PARAMETER_ORDER = ("path", "query", "header")


class SchemaConverter(OpenAPIConverter):
    """apispec's converter of schemas and fields, with two additions.

    A schema's `json_schema` adds keywords to the object. A field whose metadata names a `component` is described once,
    in that component, and referenced everywhere.
    """

    def schema2jsonschema(self, schema: Any) -> dict[str, Any]:
        """The JSON Schema of a marshmallow schema."""
        converted = super().schema2jsonschema(schema)  # type: ignore[no-untyped-call]  # apispec has few annotations
        return {**converted, **getattr(schema, "json_schema", {})}

    def field2property(self, field: Any) -> dict[str, Any]:
        """The JSON Schema of a marshmallow field, or a reference to it."""
        converted = super().field2property(field)
        name = field.metadata.get("component")
        if name is None:
            return converted
        if name not in self.spec.components.schemas:
            self.spec.components.schema(name, converted)
        return self.spec.components.get_ref("schema", name)


class SchemaPlugin(MarshmallowPlugin):
    """apispec's plugin with that converter. Each operation lists all its parameters, in one order.

    Code generators turn parameters into arguments in that order, and put those of a path item last.
    """

    Converter = SchemaConverter

    def path_helper(
        self,
        path: str | None = None,
        operations: dict[str, Any] | None = None,
        parameters: list[dict[str, Any]] | None = None,
        **_: Any,
    ) -> None:
        """Move the parameters of a path into its operations, and sort all."""
        for operation in (operations or {}).values():
            all_parameters = [*deepcopy(parameters or []), *operation.get("parameters", [])]
            if all_parameters:
                operation["parameters"] = sorted(all_parameters, key=lambda each: PARAMETER_ORDER.index(each["in"]))
        if parameters:
            parameters.clear()
