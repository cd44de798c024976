//! Request and reply of `POST /v1/classify`, converted at the door.
//!
//! Requests are read by hand, field by field: serde's own messages may quote what was sent, and a bad
//! item must not spoil its neighbours.

use std::collections::HashSet;

use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::body;
use super::error::ApiError;
use crate::domain::author::is_author_field;
use crate::domain::case::{CaseId, CaseText, TextError};
use crate::inference::plan::Lane;
use crate::reply::ClassifiedItem;

/// Fields of the envelope and of an item; a test keeps them equal to the documented types.
const ENVELOPE_FIELDS: [&str; 4] = ["items", "include", "deadline_ms", "lane"];
const ITEM_FIELDS: [&str; 2] = ["id", "text"];
/// Most items whose evidence may be asked for in one request.
const MAX_EVIDENCE_ITEMS: usize = 8;

/// `POST /v1/classify`.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassifyRequest {
    /// What to classify; at least one.
    #[schema(min_items = 1)]
    pub items: Vec<Item>,
    /// Parts of the reply that are left out unless asked for.
    pub include: Option<Vec<Include>>,
    /// Milliseconds after which the answer is of no use.
    #[schema(minimum = 1, maximum = 60_000)]
    pub deadline_ms: Option<u64>,
    /// Who waits: a person (when absent) or a job, which lets persons go first. Also as header `X-Triage-Lane`.
    pub lane: Option<LaneName>,
}

/// Who waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum LaneName {
    /// A person.
    Interactive,
    /// A job.
    Bulk,
}

/// One text. Fields that name or describe its author are refused.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// The caller's name for it, unique in the request.
    #[schema(min_length = 1, max_length = 128, example = "a1")]
    pub id: String,
    /// The text, with something visible in it.
    #[schema(min_length = 1, max_length = 20_000, example = "小区停水三天了，物业没人管")]
    pub text: String,
}

/// A part of the reply that is left out unless asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum Include {
    /// Words that carried the type.
    Evidence,
    /// Uncalibrated scores; where there are keys, for those with the role `train`.
    Logits,
}

/// Reply of `POST /v1/classify`.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct ClassifyReply<'a> {
    /// One result per item, in order.
    pub results: Vec<ItemResult<'a>>,
    /// The model that answered.
    pub model: Model<'a>,
    /// Digest of the taxonomy and review policy in force.
    pub policy_digest: &'a str,
}

/// A classified item, or why it could not be.
#[derive(Debug, serde::Serialize, ToSchema)]
#[serde(untagged)]
pub enum ItemResult<'a> {
    /// Classified.
    Classified(Box<ClassifiedItem<'a>>),
    /// Refused; no other item is harmed.
    Refused(ItemError<'a>),
}

/// An item that could not be classified.
#[derive(Debug, Clone, PartialEq, serde::Serialize, ToSchema)]
pub struct ItemError<'a> {
    /// The caller's name for the item, when it has a usable one.
    pub id: Option<&'a str>,
    /// Always `error`.
    pub status: &'static str,
    /// What is wrong.
    pub error: Fault,
}

/// What is wrong with an item.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, ToSchema)]
pub struct Fault {
    /// Stable code.
    pub code: &'static str,
    /// What is wrong and how to put it right.
    pub detail: String,
    /// The limit that was passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// What was sent, in the limit's unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual: Option<usize>,
    /// JSON pointer to the place in the request.
    pub pointer: String,
}

/// Which model answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, ToSchema)]
pub struct Model<'a> {
    /// Name.
    pub name: &'a str,
    /// Version.
    pub version: &'a str,
    /// `sha256:…` over the bundle.
    pub digest: &'a str,
}

/// A request whose envelope is right.
#[derive(Debug)]
pub struct Parsed {
    /// Items in order.
    pub items: Vec<ParsedItem>,
    /// Evidence was asked for.
    pub include_evidence: bool,
    /// Logits were asked for.
    pub include_logits: bool,
    /// Deadline asked for, in milliseconds.
    pub deadline_ms: Option<u64>,
    /// Lane asked for.
    pub lane: Option<Lane>,
}

/// One item, right or wrong.
#[derive(Debug)]
pub struct ParsedItem {
    /// Its id, when it has a usable one.
    pub id: Option<CaseId>,
    /// Its text, or what is wrong with the item.
    pub text: Result<CaseText, Fault>,
}

/// Reads the envelope; items may still be faulty, each for itself.
///
/// # Errors
/// [`ApiError::InvalidJson`] or [`ApiError::TooDeep`], or [`ApiError::Semantic`] about the envelope.
pub fn parse(body: &[u8], max_items: usize, max_deadline_ms: u64) -> Result<Parsed, ApiError> {
    let Value::Object(mut envelope) = body::json(body)? else {
        return Err(semantic("not_an_object", "the body must be an object with `items`", ""));
    };
    for name in envelope.keys() {
        if is_author_field(name) {
            return Err(semantic("author_field", AUTHOR, &pointer(&[name])));
        }
        if !ENVELOPE_FIELDS.contains(&name.as_str()) {
            let detail = format!("fields of a request are {}", ENVELOPE_FIELDS.join(", "));
            return Err(semantic("unknown_field", &detail, &pointer(&[name])));
        }
    }
    let include = include(envelope.remove("include"))?;
    let deadline_ms = match envelope.remove("deadline_ms") {
        None | Some(Value::Null) => None,
        Some(value) => match value.as_u64() {
            Some(ms) if (1..=max_deadline_ms).contains(&ms) => Some(ms),
            other => {
                return Err(ApiError::Semantic {
                    code: "invalid_deadline",
                    detail: format!("`deadline_ms` is a whole number from 1 to {max_deadline_ms}"),
                    pointer: "/deadline_ms".into(),
                    bound: other.map(|it| (max_deadline_ms, it)),
                });
            }
        },
    };
    let lane = match envelope.remove("lane") {
        None | Some(Value::Null) => None,
        Some(value) => {
            let lane = value.as_str().and_then(Lane::from_code);
            let wrong =
                || semantic("unknown_lane", "`lane` is \"interactive\" or \"bulk\"", "/lane");
            Some(lane.ok_or_else(wrong)?)
        }
    };
    let items = match envelope.remove("items") {
        Some(Value::Array(items)) if !items.is_empty() => items,
        _ => {
            let detail = "`items` must be an array with at least one {\"id\", \"text\"}";
            return Err(semantic("no_items", detail, "/items"));
        }
    };
    if items.len() > max_items {
        return Err(ApiError::Semantic {
            code: "too_many_items",
            detail: format!("a request has at most {max_items} items; send several requests"),
            pointer: "/items".into(),
            bound: Some((max_items as u64, items.len() as u64)),
        });
    }
    let mut ids = HashSet::new();
    let include_evidence = include.contains(&Include::Evidence);
    if include_evidence && items.len() > MAX_EVIDENCE_ITEMS {
        return Err(ApiError::Semantic {
            code: "too_many_items",
            detail: format!(
                "evidence costs a prediction a word: ask for it for at most {MAX_EVIDENCE_ITEMS} items at a time"
            ),
            pointer: "/items".into(),
            bound: Some((MAX_EVIDENCE_ITEMS as u64, items.len() as u64)),
        });
    }
    let items = items.into_iter().enumerate().map(|(idx, it)| item(idx, it, &mut ids)).collect();
    Ok(Parsed {
        items,
        include_evidence,
        include_logits: include.contains(&Include::Logits),
        deadline_ms,
        lane,
    })
}

const AUTHOR: &str =
    "triage is author-blind: leave out every field that names or describes the author";

fn include(value: Option<Value>) -> Result<Vec<Include>, ApiError> {
    let wrong = |at: String| {
        semantic("unknown_include", "`include` is an array of \"evidence\", \"logits\"", &at)
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(parts)) => parts
            .iter()
            .enumerate()
            .map(|(idx, part)| match part.as_str() {
                Some("evidence") => Ok(Include::Evidence),
                Some("logits") => Ok(Include::Logits),
                _ => Err(wrong(format!("/include/{idx}"))),
            })
            .collect(),
        Some(_) => Err(wrong("/include".into())),
    }
}

fn item(idx: usize, value: Value, ids: &mut HashSet<String>) -> ParsedItem {
    let Value::Object(mut fields) = value else {
        let detail = "an item is an object with `id` and `text`".to_owned();
        return ParsedItem { id: None, text: Err(fault("not_an_object", detail, idx, &[])) };
    };
    let (id, id_fault) = match id(idx, &mut fields, ids) {
        Ok(id) => (Some(id), None),
        Err((id, fault)) => (id, Some(fault)),
    };
    // The author first: whatever else is wrong, this must be known.
    let author = fields.keys().find(|it| is_author_field(it));
    let unknown = || fields.keys().find(|it| !ITEM_FIELDS.contains(&it.as_str()));
    let found = if let Some(name) = author {
        Some(fault("author_field", AUTHOR.into(), idx, &[name]))
    } else if let Some(name) = unknown() {
        let detail = format!("fields of an item are {}", ITEM_FIELDS.join(", "));
        Some(fault("unknown_field", detail, idx, &[name]))
    } else {
        id_fault
    };
    let text = match found {
        Some(fault) => Err(fault),
        None => text(idx, fields),
    };
    ParsedItem { id, text }
}

/// The id; on a duplicate both the id and the fault.
fn id(
    idx: usize,
    fields: &mut Map<String, Value>,
    ids: &mut HashSet<String>,
) -> Result<CaseId, (Option<CaseId>, Fault)> {
    let wrong = |code, detail: String| (None, fault(code, detail, idx, &["id"]));
    let text = match fields.remove("id") {
        None | Some(Value::Null) => {
            return Err(wrong("missing_field", "an item needs an `id`".into()));
        }
        Some(Value::String(it)) => it,
        Some(_) => return Err(wrong("wrong_type", "`id` must be a string".into())),
    };
    let id = CaseId::parse(text).map_err(|it| wrong("invalid_id", it.to_string()))?;
    if !ids.insert(id.as_str().to_owned()) {
        let detail = "an earlier item has the same id; ids are unique in a request".to_owned();
        return Err((Some(id), fault("duplicate_id", detail, idx, &["id"])));
    }
    Ok(id)
}

fn text(idx: usize, mut fields: Map<String, Value>) -> Result<CaseText, Fault> {
    let text = match fields.remove("text") {
        None | Some(Value::Null) => {
            return Err(fault("missing_field", "an item needs a `text`".into(), idx, &["text"]));
        }
        Some(Value::String(it)) => it,
        Some(_) => {
            return Err(fault("wrong_type", "`text` must be a string".into(), idx, &["text"]));
        }
    };
    CaseText::parse(text).map_err(|error| match error {
        TextError::Empty => fault("empty_text", error.to_string(), idx, &["text"]),
        TextError::TooLong { limit, actual } => Fault {
            limit: Some(limit),
            actual: Some(actual),
            ..fault("long_text", error.to_string(), idx, &["text"])
        },
    })
}

/// The fault of item `idx` at `path` in it.
pub fn fault(code: &'static str, detail: String, idx: usize, path: &[&str]) -> Fault {
    let pointer = format!("/items/{idx}{}", pointer(path));
    Fault { code, detail, limit: None, actual: None, pointer }
}

fn semantic(code: &'static str, detail: &str, pointer: &str) -> ApiError {
    ApiError::Semantic { code, detail: detail.into(), pointer: pointer.into(), bound: None }
}

/// RFC 6901; a name too long to be meant is cut, so that no text travels back in it.
fn pointer(path: &[&str]) -> String {
    const MOST: usize = 64;
    path.iter()
        .map(|it| {
            let short: String = it.chars().take(MOST).collect();
            format!("/{}", short.replace('~', "~0").replace('/', "~1"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use utoipa::PartialSchema;

    #[test]
    fn the_documented_fields_are_the_ones_that_are_read() {
        let properties = |schema: utoipa::openapi::RefOr<utoipa::openapi::Schema>| {
            let json = serde_json::to_value(schema).unwrap();
            let names = json["properties"].as_object().unwrap().keys().cloned();
            names.collect::<HashSet<_>>()
        };
        let own = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect();
        assert_eq!(properties(ClassifyRequest::schema()), own(&ENVELOPE_FIELDS));
        assert_eq!(properties(Item::schema()), own(&ITEM_FIELDS));
    }

    #[test]
    fn pointers_are_escaped_and_short() {
        assert_eq!(pointer(&["a/b~c"]), "/a~1b~0c");
        assert_eq!(pointer(&["x".repeat(100).as_str()]).len(), 65);
    }
}
