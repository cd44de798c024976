//! For the contract: every refusal a route can give, made from the errors themselves, so that status, code and text
//! are those of the code, and the header that makes a request answered once. `tests/api/contract.rs` provokes each
//! refusal.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde_json::Value;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{
    ContentBuilder, Ref, RefOr, Required, Response, ResponseBuilder, example::ExampleBuilder,
};
use utoipa::{IntoResponses, Modify};

use super::body::MAX_DEPTH;
use super::compatible::{hugging_face, inference_v2, tei};
use super::error::ApiError;
use super::idempotency::{KEY_PATTERN, MAX_KEY_CHARS};
use crate::keys::Role;

type Documented = BTreeMap<String, RefOr<Response>>;

/// How a protocol writes an error.
struct Shape {
    schema: &'static str,
    media_type: &'static str,
    body: fn(&ApiError) -> (StatusCode, Value),
}

const OWN: Shape =
    Shape { schema: "Problem", media_type: "application/problem+json", body: problem };
const TEI: Shape =
    Shape { schema: "TeiError", media_type: "application/json", body: tei::error_body };
const HUGGING_FACE: Shape = Shape {
    schema: "HuggingFaceError",
    media_type: "application/json",
    body: hugging_face::error_body,
};
const INFERENCE_V2: Shape = Shape {
    schema: "InferenceError",
    media_type: "application/json",
    body: inference_v2::error_body,
};

fn problem(error: &ApiError) -> (StatusCode, Value) {
    let problem = serde_json::to_value(error.problem()).expect("a problem is plain data");
    (error.status(), problem)
}

/// Refused for want of a key, of `role`, or of requests left.
fn access(role: Option<Role>) -> Vec<ApiError> {
    let forbidden = role.map(|it| ApiError::Forbidden { role: it.code() });
    let limited = ApiError::RateLimited { limit: 600, retry_seconds: 1 };
    [ApiError::Unauthorized, limited].into_iter().chain(forbidden).collect()
}

/// No version to answer with.
fn serving() -> Vec<ApiError> {
    vec![ApiError::Loading, ApiError::Stopping]
}

/// What can be wrong with a request that carries texts. `semantic` is an example of a wrong meaning.
fn texts(semantic: ApiError) -> Vec<ApiError> {
    let mut errors = access(Some(Role::Classify));
    errors.extend(serving());
    errors.extend([
        ApiError::InvalidJson { line: 1, column: 2 },
        ApiError::TooDeep { limit: MAX_DEPTH as u64 },
        ApiError::SlowBody { limit: 10 },
        ApiError::BodyTooLarge { limit: 4 << 20, actual: Some(5 << 20) },
        ApiError::UnsupportedMediaType,
        ApiError::InvalidIdempotencyKey,
        ApiError::IdempotencyKeyReused,
        semantic,
        ApiError::Overloaded,
        ApiError::DeadlineExceeded { limit: 60_000 },
    ]);
    errors
}

fn semantic(code: &'static str, detail: &str, pointer: &str) -> ApiError {
    ApiError::Semantic { code, detail: detail.into(), pointer: pointer.into(), bound: None }
}

fn responses(shape: &Shape, errors: &[ApiError]) -> Documented {
    let mut by_status: BTreeMap<StatusCode, Vec<(&'static str, Value, bool)>> = BTreeMap::new();
    for error in errors {
        let (status, body) = (shape.body)(error);
        let entry = (error.problem().code, body, error.retry_seconds().is_some());
        by_status.entry(status).or_default().push(entry);
    }
    by_status
        .into_iter()
        .map(|(status, errors)| {
            let codes: Vec<&str> = errors.iter().map(|it| it.0).collect();
            let mut response = ResponseBuilder::new().description(codes.join(", "));
            if errors.iter().any(|it| it.2) {
                let seconds = ObjectBuilder::new().schema_type(Type::Integer);
                let header = HeaderBuilder::new()
                    .schema(Some(seconds))
                    .description(Some("Seconds until trying again makes sense"));
                response = response.header("Retry-After", header.build());
            }
            let examples = errors
                .into_iter()
                .map(|(code, body, _)| (code, ExampleBuilder::new().value(Some(body)).build()));
            let content = ContentBuilder::new()
                .schema(Some(Ref::from_schema_name(shape.schema)))
                .examples_from_iter(examples)
                .build();
            let response = response.content(shape.media_type, content).build();
            (status.as_u16().to_string(), response.into())
        })
        .collect()
}

/// Declares a set of refusals for `#[utoipa::path]`.
macro_rules! refusals {
    ($(#[doc = $doc:literal] $name:ident: $shape:expr, $errors:expr;)*) => {$(
        #[doc = $doc]
        pub struct $name;

        impl IntoResponses for $name {
            fn responses() -> Documented {
                responses(&$shape, &$errors)
            }
        }
    )*};
}

refusals! {
    /// Of `POST /v1/classify`.
    Classify: OWN, texts(semantic("no_items", "`items` must be an array with at least one {\"id\", \"text\"}", "/items"));
    /// Of routes about the model.
    About: OWN, [access(None), serving()].concat();
    /// Of `GET /metrics`.
    Operate: OWN, access(Some(Role::Operate));
    /// Of `POST /predict`.
    Tei: TEI, [texts(semantic("empty_text", "the text is empty; send at least one visible character", "/inputs")), vec![ApiError::Internal]].concat();
    /// Of Hugging Face's routes.
    HuggingFaceRoot: HUGGING_FACE, [texts(semantic("invalid_inputs", "`inputs` is a text or a list of texts", "/inputs")), vec![ApiError::Internal]].concat();
    /// Of Hugging Face's routes that name a model.
    HuggingFaceModel: HUGGING_FACE, [texts(semantic("invalid_inputs", "`inputs` is a text or a list of texts", "/inputs")), vec![ApiError::Internal, ApiError::UnknownModel]].concat();
    /// Of the Open Inference Protocol's metadata.
    InferenceServer: INFERENCE_V2, access(None);
    /// Of the Open Inference Protocol's routes about a model.
    InferenceAbout: INFERENCE_V2, [access(None), serving(), vec![ApiError::UnknownModel]].concat();
    /// Of the Open Inference Protocol's readiness of a model.
    InferenceReady: INFERENCE_V2, [access(None), vec![ApiError::UnknownModel]].concat();
    /// Of the Open Inference Protocol's inference.
    Infer: INFERENCE_V2, [texts(semantic("invalid_inputs", "`inputs` is one tensor named \"text\" of datatype \"BYTES\" and shape [n], with n UTF-8 texts as `data`", "/inputs/0/shape")), vec![ApiError::Internal, ApiError::UnknownModel]].concat();
}

/// The header that makes a request answered once.
pub struct Idempotency;

impl Modify for Idempotency {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let key = || {
            let schema = ObjectBuilder::new()
                .schema_type(Type::String)
                .min_length(Some(1))
                .max_length(Some(MAX_KEY_CHARS + 2))
                .pattern(Some(KEY_PATTERN));
            let description = "Sent again with the same key and the same body, a request is answered with the \
                 bytes of the first time and computed once; while the first is computed, the others wait for it. \
                 Only good answers are kept, in memory and for a bounded time. Without the header nothing is kept.";
            ParameterBuilder::new()
                .name("Idempotency-Key")
                .parameter_in(ParameterIn::Header)
                .required(Required::False)
                .description(Some(description))
                .schema(Some(schema))
                .example(Some("8e03978e-40d5-43dd-bc93-6894a57f9324".into()))
                .build()
        };
        let replayed = || {
            let yes = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["true"]));
            HeaderBuilder::new()
                .schema(Some(yes))
                .description(Some(
                    "The answer was computed for an earlier request with the same key",
                ))
                .build()
        };
        for operation in openapi.paths.paths.values_mut().filter_map(|it| it.post.as_mut()) {
            operation.parameters.get_or_insert_default().push(key().into());
            for (status, response) in &mut operation.responses.responses {
                if let (true, RefOr::T(response)) = (status.starts_with('2'), response) {
                    response.headers.insert("Idempotency-Replayed".into(), replayed().into());
                }
            }
        }
    }
}
