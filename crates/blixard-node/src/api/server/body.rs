//! Bodies of requests: read as their schemas say, which is not in all things how the decoder reads by itself.

use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Number, Value};

use super::{Asker, BODY_BYTES_MAX};
use crate::api::fault::Fault;

/// A JSON body, with who sent it. What cannot be read is a fault like any other.
pub(super) struct Body<T>(pub(super) Asker, pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Serialize> FromRequest<S> for Body<T> {
    type Rejection = Fault;
    async fn from_request(request: Request, state: &S) -> Result<Self, Fault> {
        let (parts, body) = request.into_parts();
        let bytes = Bytes::from_request(Request::from_parts(parts.clone(), body), state).await;
        let bytes =
            bytes.map_err(|error| Fault::bad_request(format!("{error}; a body may have {BODY_BYTES_MAX} bytes")))?;
        let asker = Asker::of(&parts, &bytes)?;
        // What is no JSON at all is told below.
        let mut sent: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let bytes = match make_whole(&mut sent) {
            true => serde_json::to_vec(&sent).map_err(anyhow::Error::from)?.into(),
            false => bytes,
        };
        let read = axum::Json::<T>::from_request(Request::from_parts(parts, bytes.into()), state).await;
        let axum::Json(value) = read.map_err(|error| Fault::bad_request(error.body_text()))?;
        let understood = serde_json::to_value(&value).map_err(anyhow::Error::from)?;
        if is_list_of_fields(&sent, &understood) {
            return Err(Fault::bad_request("fields are sent by their names, in an object, and not as a list"));
        }
        Ok(Self(asker, value))
    }
}

/// Writes whole numbers as such: to JSON `2.0` and `2` are the same, and some languages write the first. Whether there were any.
fn make_whole(value: &mut Value) -> bool {
    match value {
        Value::Number(number) if number.is_f64() => {
            let text = number.as_f64().filter(|float| float.fract() == 0.0).map(|float| format!("{float:.0}"));
            let whole = text.and_then(|text| {
                text.parse::<u64>().map(Number::from).or_else(|_| text.parse::<i64>().map(Number::from)).ok()
            });
            whole.map(|whole| *number = whole).is_some()
        }
        // Counted, because each of them is to be changed, and not only the first that has one.
        Value::Array(items) => items.iter_mut().map(make_whole).filter(|found| *found).count() > 0,
        Value::Object(fields) => fields.values_mut().map(make_whole).filter(|found| *found).count() > 0,
        _ => false,
    }
}

/// Whether somewhere a list was sent and read as an object: the decoder takes the values of fields in their order for that,
/// which is documented nowhere and would change meaning with each new field.
fn is_list_of_fields(sent: &Value, read: &Value) -> bool {
    match (sent, read) {
        (Value::Array(_), Value::Object(_)) => true,
        (Value::Array(sent), Value::Array(read)) => {
            sent.iter().zip(read).any(|(sent, read)| is_list_of_fields(sent, read))
        }
        (Value::Object(sent), Value::Object(read)) => {
            sent.iter().any(|(name, sent)| read.get(name).is_some_and(|read| is_list_of_fields(sent, read)))
        }
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use blixard_core::EndpointId;
    use http::StatusCode;
    use serde_json::json;

    use super::*;
    use crate::api::views::{CreateToken, CreateVm, StopVm};
    use crate::transport::http::Caller;

    async fn read<T: DeserializeOwned + Serialize>(body: &str) -> Result<Value, Fault> {
        let request = http::Request::post("/v1/things").header("content-type", "application/json");
        let request = request.extension(Caller(EndpointId([1; 32])));
        let body = axum::body::Body::from(body.to_owned());
        let Body(_, value) = Body::<T>::from_request(request.body(body).unwrap(), &()).await?;
        Ok(serde_json::to_value(value).unwrap())
    }

    #[tokio::test]
    async fn whole_numbers_are_whole_however_they_are_written() {
        for text in [r#"{"timeout_ms":1500}"#, r#"{"timeout_ms":1500.0}"#, r#"{"timeout_ms":1.5e3}"#] {
            assert_eq!(read::<StopVm>(text).await.unwrap(), json!({ "timeout_ms": 1500 }), "{text}");
        }
        assert_eq!(read::<StopVm>(r#"{"timeout_ms":-0.0}"#).await.unwrap(), json!({ "timeout_ms": 0 }));
        for text in [r#"{"timeout_ms":1.5}"#, r#"{"timeout_ms":-1.0}"#, r#"{"timeout_ms":1e300}"#, "1.0", "", "{"] {
            let fault = read::<StopVm>(text).await.unwrap_err();
            assert_eq!(fault.kind.status(), StatusCode::BAD_REQUEST, "{text}: {fault}");
        }
    }

    #[tokio::test]
    async fn fields_have_names() {
        assert!(read::<CreateToken>("[null,null]").await.unwrap_err().message.contains("by their names"));
        let vm = |seed: Value, restart: Value| {
            let vm = json!({ "name": "web", "image": "tiny", "vcpus": 1.0, "memory_mib": 64, "seed": seed,
                             "publish": [{ "host_port": 80, "guest_port": 80, "protocol": "tcp" }], "restart": restart });
            vm.to_string()
        };
        let (seed, restart) = (json!({ "user_data": null, "ssh_keys": [] }), json!({ "on-failure": { "limit": 2 } }));
        let read_back = read::<CreateVm>(&vm(seed.clone(), restart.clone())).await.unwrap();
        assert_eq!((&read_back["vcpus"], &read_back["restart"]), (&json!(1), &restart));
        for text in [vm(json!([null, []]), restart), vm(seed, json!({ "on-failure": [2] }))] {
            assert!(read::<CreateVm>(&text).await.unwrap_err().message.contains("by their names"), "{text}");
        }
    }
}
