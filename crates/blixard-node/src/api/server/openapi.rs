//! The contract as an OpenAPI document, for programs that are written against it and for tools that check it.
//!
//! What a request takes is read from the type of its handler: its extractors say which parameters and which body it has, and
//! the types of those have schemas beside the code that reads them. So the document cannot name what no handler takes.

use axum::extract::{Request, State};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::{Asker, Body, Path, Query};
use crate::api::REQUEST_HEADER;
use crate::api::fault::{Fault, FaultKind};

/// Where the document keeps what is named.
const DEFINITIONS: &str = "/components/schemas";

/// What one request takes and gives.
#[derive(Default)]
pub(super) struct Operation {
    path_parts: Vec<Schema>,
    parameters: Vec<Value>,
    body: Option<Value>,
}

/// Something that a handler takes out of a request.
pub(super) trait Input {
    /// Notes what it needs of the request.
    fn describe(operation: &mut Operation, schemas: &mut SchemaGenerator);
}

impl<S> Input for State<S> {
    fn describe(_: &mut Operation, _: &mut SchemaGenerator) {}
}

impl Input for Request {
    fn describe(_: &mut Operation, _: &mut SchemaGenerator) {}
}

impl Input for Asker {
    fn describe(operation: &mut Operation, _: &mut SchemaGenerator) {
        operation.parameters.push(json!({
            "name": REQUEST_HEADER, "in": "header",
            "description": "Names the request, so that it has one effect and one answer however often it is sent.",
            "schema": { "type": "string", "pattern": "^[0-9a-fA-F]{32}$" },
        }));
    }
}

impl<T: JsonSchema> Input for Path<T> {
    fn describe(operation: &mut Operation, schemas: &mut SchemaGenerator) {
        let whole = schemas.subschema_for::<T>();
        let parts = whole.get("prefixItems").and_then(Value::as_array).cloned();
        operation.path_parts = match parts {
            Some(parts) => parts.into_iter().filter_map(|part| part.try_into().ok()).collect(),
            None => vec![whole],
        };
    }
}

impl<T: JsonSchema> Input for Query<T> {
    fn describe(operation: &mut Operation, schemas: &mut SchemaGenerator) {
        let schema = T::json_schema(schemas);
        for (name, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            operation.parameters.push(json!({ "name": name, "in": "query", "schema": schema }));
        }
    }
}

impl<T: JsonSchema> Input for Body<T> {
    fn describe(operation: &mut Operation, schemas: &mut SchemaGenerator) {
        let schema = schemas.subschema_for::<T>();
        operation.body = Some(json!({ "required": true, "content": { "application/json": { "schema": schema } } }));
    }
}

impl Input for axum::body::Body {
    fn describe(operation: &mut Operation, _: &mut SchemaGenerator) {
        operation.body = Some(json!({ "required": true, "content": { "application/octet-stream": {} } }));
    }
}

/// All that a handler takes, as axum names it: a marker, and its arguments.
pub(super) trait Inputs {
    /// Notes what they need of the request.
    fn describe(operation: &mut Operation, schemas: &mut SchemaGenerator);
}

macro_rules! inputs {
    ($($input:ident),+) => {
        impl<M, $($input: Input),+> Inputs for (M, $($input,)+) {
            fn describe(operation: &mut Operation, schemas: &mut SchemaGenerator) {
                $($input::describe(operation, schemas);)+
            }
        }
    };
}
inputs!(A);
inputs!(A, B);
inputs!(A, B, C);
inputs!(A, B, C, D);

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
    (200, json!({ "application/octet-stream": {} }))
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
        json!({
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
        })
    }
}

/// `get-v1-vms-name`: what tools call the request.
fn operation_id(method: &str, path: &str) -> String {
    let words = path.split('/').map(|part| part.trim_matches(['{', '}'])).filter(|part| !part.is_empty());
    std::iter::once(method.to_ascii_lowercase().as_str()).chain(words).collect::<Vec<_>>().join("-")
}
