//! The contract as an OpenAPI document, for programs that are written against it and for tools that check it.
//!
//! What a request takes is read from the type of its handler (`extract.rs`), and the types of that have schemas beside the code
//! that reads them. So the document cannot name what no handler takes.

use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use super::BYTES;
use super::extract::Operation;
use crate::api::fault::{Fault, FaultKind};

/// Where the document keeps what is named.
const DEFINITIONS: &str = "/components/schemas";

/// What a request answers when it succeeds: its status and its content.
pub(super) type Answer = fn(&mut SchemaGenerator) -> (u16, Value);

/// A view as JSON.
pub(super) fn json<T: JsonSchema>(schemas: &mut SchemaGenerator) -> (u16, Value) {
    (200, json!({ "application/json": { "schema": schemas.subschema_for::<T>() } }))
}

/// Views as JSON, one a line, for as long as there is something to tell.
pub(super) fn lines<T: JsonSchema>(schemas: &mut SchemaGenerator) -> (u16, Value) {
    // A schema can describe a line, and not the stream; it is named so that readers find it.
    let line = schemas.subschema_for::<T>();
    (200, json!({ "application/x-ndjson": { "schema": { "type": "string" }, "x-line": line } }))
}

/// Bytes.
pub(super) fn bytes(_: &mut SchemaGenerator) -> (u16, Value) {
    (200, json!({ BYTES: {} }))
}

/// The stream itself, for bytes in both directions.
pub(super) fn console(_: &mut SchemaGenerator) -> (u16, Value) {
    (101, json!({}))
}

/// The document, as it grows.
pub(super) struct Document {
    schemas: SchemaGenerator,
    paths: Map<String, Value>,
}

impl Document {
    pub(super) fn new() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = DEFINITIONS.into());
        Self { schemas: settings.into_generator(), paths: Map::new() }
    }

    /// Adds a request.
    pub(super) fn add(
        &mut self,
        (method, path, least): (&str, &str, &str),
        summary: &str,
        describe: fn(&mut Operation, &mut SchemaGenerator),
        answer: Answer,
    ) {
        let mut operation = Operation::default();
        describe(&mut operation, &mut self.schemas);
        let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let parts = names
            .zip(operation.path_parts)
            .map(|(name, schema)| json!({ "name": name, "in": "path", "required": true, "schema": schema }));
        let mut parameters: Vec<Value> = parts.collect();
        parameters.extend(operation.parameters);
        let fault = self.schemas.subschema_for::<Fault>();
        let mut responses = Map::new();
        let (status, content) = answer(&mut self.schemas);
        responses.insert(status.to_string(), json!({ "description": "It is done.", "content": content }));
        for (kind, meaning) in FaultKind::ALL {
            let content = json!({ "application/json": { "schema": fault } });
            let answer = json!({ "description": meaning, "content": content });
            responses.insert(kind.status().as_u16().to_string(), answer);
        }
        let mut described = json!({
            "summary": summary,
            "description": format!("For clients with the role {least}, or one that may do more."),
            "operationId": operation_id(method, path),
            "parameters": parameters,
            "responses": responses,
        });
        // The proxy's own answer: a node knows its callers by their keys.
        described["responses"]["401"] = json!({
            "description": "The proxy was not shown its token.",
            "content": { "application/json": { "schema": fault } },
        });
        if let Some(body) = operation.body {
            described["requestBody"] = body;
        }
        let methods = self.paths.entry(path).or_insert_with(|| json!({}));
        methods[method.to_ascii_lowercase()] = described;
    }

    pub(super) fn finish(mut self) -> Value {
        let schemas = self.schemas.take_definitions(true);
        let mut document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Blixard control API",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "Served over iroh streams to clients whose key the cluster knows. `blixard api proxy` makes it \
                                reachable for tools on one's own host.",
                "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
            },
            "paths": self.paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": { "proxy": { "type": "http", "scheme": "bearer" } },
            },
            "security": [{ "proxy": [] }],
        });
        spell_out(&mut document);
        document
    }
}

/// Says in words that every tool knows what some formats say only to who knows them: how large a number may be, and which texts
/// are addresses.
fn spell_out(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(spell_out);
            let maximum = match fields.get("format").and_then(Value::as_str) {
                Some("uint64" | "uint") => u64::MAX,
                Some("uint32") => u32::MAX.into(),
                Some("ip") => {
                    fields.remove("format");
                    fields.insert("anyOf".to_owned(), json!([{ "format": "ipv4" }, { "format": "ipv6" }]));
                    return;
                }
                _ => return,
            };
            fields.entry("maximum").or_insert(maximum.into());
        }
        Value::Array(items) => items.iter_mut().for_each(spell_out),
        _ => {}
    }
}

/// `get-v1-vms-name`: what tools call the request.
fn operation_id(method: &str, path: &str) -> String {
    let words = path.split('/').map(|part| part.trim_matches(['{', '}'])).filter(|part| !part.is_empty());
    std::iter::once(method.to_ascii_lowercase().as_str()).chain(words).collect::<Vec<_>>().join("-")
}
