//! What handlers take out of requests: how it is described, and how it is read with no node behind, which is what a caller can
//! reach before anything is decided.

use axum::Router;
use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Asker, BYTES, Body, Path, Query, body_limit, peer, routes};
use crate::api::REQUEST_HEADER;
use crate::api::fault::Fault;

/// All requests of the API and those of members to each other; each answers with nothing once it has read everything.
pub(crate) fn readers() -> Router {
    let readers = routes::readers().chain(peer::readers());
    readers.fold(Router::new(), |router, (path, reader)| router.route(path, reader)).layer(body_limit())
}

/// What reads all that a handler takes, and does nothing with it.
pub(super) fn reader<T: Inputs + 'static>(method: MethodFilter) -> MethodRouter {
    on(method, async |request: Request| T::read(request).await)
}

/// What one request takes.
#[derive(Default)]
pub(super) struct Operation {
    pub(super) path_parts: Vec<Schema>,
    pub(super) parameters: Vec<Value>,
    pub(super) body: Option<Value>,
}

/// Something that a handler takes out of a request.
pub(super) trait Input {
    /// Notes what it needs of the request.
    fn describe(operation: &mut Operation, schemas: &mut SchemaGenerator);

    /// Reads it as for the handler, and gives the request on.
    fn read(request: Request) -> impl Future<Output = Result<Request, Fault>> + Send;
}

pub(super) async fn read_from_head<T: FromRequestParts<(), Rejection = Fault>>(
    request: Request,
) -> Result<Request, Fault> {
    let (mut parts, body) = request.into_parts();
    T::from_request_parts(&mut parts, &()).await?;
    Ok(Request::from_parts(parts, body))
}

impl<S> Input for State<S> {
    fn describe(_: &mut Operation, _: &mut SchemaGenerator) {}

    async fn read(request: Request) -> Result<Request, Fault> {
        Ok(request)
    }
}

impl Input for Request {
    fn describe(_: &mut Operation, _: &mut SchemaGenerator) {}

    async fn read(request: Request) -> Result<Request, Fault> {
        Ok(request)
    }
}

impl Input for Asker {
    fn describe(operation: &mut Operation, _: &mut SchemaGenerator) {
        operation.parameters.push(json!({
            "name": REQUEST_HEADER, "in": "header",
            "description": "Names the request, so that it has one effect and one answer however often it is sent.",
            "schema": { "type": "string", "pattern": "^[0-9a-fA-F]{32}$" },
        }));
    }

    async fn read(request: Request) -> Result<Request, Fault> {
        read_from_head::<Self>(request).await
    }
}

impl<T: JsonSchema + DeserializeOwned + Send> Input for Path<T> {
    fn describe(operation: &mut Operation, schemas: &mut SchemaGenerator) {
        let whole = schemas.subschema_for::<T>();
        let parts = whole.get("prefixItems").and_then(Value::as_array).cloned();
        operation.path_parts = match parts {
            Some(parts) => parts.into_iter().filter_map(|part| part.try_into().ok()).collect(),
            None => vec![whole],
        };
    }

    async fn read(request: Request) -> Result<Request, Fault> {
        read_from_head::<Self>(request).await
    }
}

impl<T: JsonSchema + DeserializeOwned> Input for Query<T> {
    fn describe(operation: &mut Operation, schemas: &mut SchemaGenerator) {
        let schema = T::json_schema(schemas);
        let required = schema.get("required").and_then(Value::as_array);
        for (name, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let mut parameter = json!({ "name": name, "in": "query", "schema": schema });
            if required.is_some_and(|required| required.iter().any(|field| field == name)) {
                parameter["required"] = true.into();
            }
            operation.parameters.push(parameter);
        }
    }

    async fn read(request: Request) -> Result<Request, Fault> {
        read_from_head::<Self>(request).await
    }
}

impl<T: JsonSchema + DeserializeOwned + Serialize> Input for Body<T> {
    fn describe(operation: &mut Operation, schemas: &mut SchemaGenerator) {
        Asker::describe(operation, schemas);
        let schema = schemas.subschema_for::<T>();
        operation.body = Some(json!({ "required": true, "content": { "application/json": { "schema": schema } } }));
    }

    async fn read(request: Request) -> Result<Request, Fault> {
        let (parts, body) = request.into_parts();
        Self::from_request(Request::from_parts(parts.clone(), body), &()).await?;
        Ok(Request::from_parts(parts, axum::body::Body::empty()))
    }
}

impl Input for axum::body::Body {
    fn describe(operation: &mut Operation, _: &mut SchemaGenerator) {
        let schema = json!({ "type": "string", "format": "binary", "minLength": 1 });
        operation.body = Some(json!({ "required": true, "content": { BYTES: { "schema": schema } } }));
    }

    async fn read(request: Request) -> Result<Request, Fault> {
        Ok(request)
    }
}

/// All that a handler takes, as axum names it: a marker, and its arguments.
pub(super) trait Inputs {
    /// Notes what they need of the request.
    fn describe(operation: &mut Operation, schemas: &mut SchemaGenerator);

    /// Reads them.
    fn read(request: Request) -> impl Future<Output = Result<(), Fault>> + Send;
}

macro_rules! inputs {
    ($($input:ident),+) => {
        impl<M, $($input: Input),+> Inputs for (M, $($input,)+) {
            fn describe(operation: &mut Operation, schemas: &mut SchemaGenerator) {
                $($input::describe(operation, schemas);)+
            }

            async fn read(request: Request) -> Result<(), Fault> {
                $(let request = $input::read(request).await?;)+
                drop(request);
                Ok(())
            }
        }
    };
}
inputs!(A);
inputs!(A, B);
inputs!(A, B, C);
inputs!(A, B, C, D);
inputs!(A, B, C, D, E);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use blixard_core::EndpointId;
    use http::StatusCode;
    use tower::ServiceExt;

    use super::*;
    use crate::transport::http::Caller;

    #[tokio::test]
    async fn every_request_of_the_api_is_read_here_too() {
        for rule in routes::rules() {
            let path = rule.path.replace(['{', '}'], "");
            let request = http::Request::builder().method(&rule.method).uri(&path);
            let mut request = request.body(axum::body::Body::empty()).unwrap();
            request.extensions_mut().insert(Caller(EndpointId([0; 32])));
            let status = readers().oneshot(request).await.unwrap().status();
            let is_known = !matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED);
            assert!(is_known, "{} {path}: {status}", rule.method);
        }
    }
}
