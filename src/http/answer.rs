//! From texts to predictions, the same way for every protocol: places before work, text work off the async
//! threads, the engine's answer before the deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::body::{self, Media};
use super::error::ApiError;
use super::{Service, Serving};
use crate::domain::case::CaseText;
use crate::domain::prediction::Prediction;
use crate::inference::InferError;
use crate::inference::plan::Lane;
use crate::pipeline::{InputReport, PrepareError, Prepared};
use crate::reply::{ClassifiedItem, reply};

/// Header that names the lane.
pub const LANE: &str = "x-triage-lane";

/// A text as it came, and where in the request it stood.
#[derive(Debug)]
pub struct Submitted {
    /// The text.
    pub text: String,
    /// JSON pointer.
    pub pointer: String,
}

/// Every text of a request, answered.
pub struct Answer {
    /// The version that answered.
    pub serving: Arc<Serving>,
    /// What became of each text, in order.
    pub rows: Vec<(InputReport, Prediction)>,
    /// How long it took.
    pub timing: Timing,
}

impl Answer {
    /// The texts as `POST /v1/classify` would answer them.
    pub fn items(&self) -> impl Iterator<Item = ClassifiedItem<'_>> {
        self.rows
            .iter()
            .map(|(report, prediction)| reply(&self.serving.pipeline, "", report, prediction, true))
    }
}

/// Where a request's time went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// Reading, parsing and preparing.
    pub text: Duration,
    /// Waiting for the model and computing.
    pub model: Duration,
}

impl Timing {
    /// The value of `Server-Timing`, in milliseconds.
    pub fn header(&self) -> HeaderValue {
        let ms = |it: Duration| it.as_secs_f64() * 1000.0;
        let value = format!("text;dur={:.2}, model;dur={:.2}", ms(self.text), ms(self.model));
        HeaderValue::from_str(&value).expect("numbers and names are visible ASCII")
    }
}

/// When the answer of a request is of no use any more.
#[derive(Debug, Clone, Copy)]
pub struct Due {
    /// When the request came.
    pub began: Instant,
    /// How long its answer may take.
    pub limit: Duration,
}

impl Due {
    /// The moment.
    pub fn at(&self) -> Instant {
        self.began + self.limit
    }

    /// What `work` gives, if it does so in time.
    ///
    /// # Errors
    /// [`ApiError::DeadlineExceeded`], or what is wrong with the work.
    pub async fn wait<T>(
        &self,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let too_late = |_| self.error(InferError::TooLate);
        tokio::time::timeout_at(self.at().into(), work).await.map_err(too_late)?
    }

    /// Why there is no prediction.
    pub fn error(&self, error: InferError) -> ApiError {
        ApiError::infer(error, self.limit)
    }
}

/// Answers all texts of a request or none: the protocols that ask so have no place for one text's error.
/// `parse` finds them in the body, and whatever else it wants.
///
/// # Errors
/// [`ApiError`], about the first text that is wrong.
pub async fn all_or_none<T: Send + 'static>(
    service: &Arc<Service>,
    headers: &HeaderMap,
    body: Body,
    media: Media,
    parse: impl FnOnce(&Bytes) -> Result<(Vec<Submitted>, T), ApiError> + Send + 'static,
) -> Result<(Answer, T), ApiError> {
    let started = Instant::now();
    let serving = service.serving()?;
    body::require(media, headers)?;
    let lane = lane(headers)?;
    let (body, _in_memory) = body::read(service, headers, body).await?;
    let (reports, rows, asked, received, _places) = on_cpu({
        let (service, serving) = (Arc::clone(service), Arc::clone(&serving));
        move || {
            let (texts, asked) = parse(&body)?;
            let (limit, actual) = (service.limits.max_items as u64, texts.len() as u64);
            if actual > limit {
                return Err(ApiError::Semantic {
                    code: "too_many_items",
                    detail: format!("a request has at most {limit} texts; send several requests"),
                    pointer: "/inputs".into(),
                    bound: Some((limit, actual)),
                });
            }
            let received = service.metrics.receive(texts.len());
            let places = Places::take(&service, texts.len(), lane)?;
            let mut rows = Vec::with_capacity(texts.len());
            for Submitted { text, pointer } in texts {
                let text =
                    CaseText::parse(text).map_err(|it| ApiError::text(&it, pointer.clone()))?;
                let row = serving.pipeline.prepare(&text).map_err(|error| match error {
                    PrepareError::NothingVisible => ApiError::Semantic {
                        code: "empty_text",
                        detail: error.to_string(),
                        pointer,
                        bound: None,
                    },
                })?;
                rows.push(row);
            }
            let reports: Vec<_> = rows.iter().map(|it| it.report.clone()).collect();
            Ok((reports, rows, asked, received, places))
        }
    })
    .await??;
    tracing::Span::current().record("items.count", reports.len());
    let text = started.elapsed();
    let due = Due { began: started, limit: service.limits.max_deadline };
    let predictions = due.wait(predict(service, &serving, lane, rows, due)).await?;
    let rows: Vec<_> = reports
        .into_iter()
        .zip(predictions)
        .map(|(report, prediction)| Ok((report, prediction.map_err(|it| due.error(it))?)))
        .collect::<Result<_, ApiError>>()?;
    let timing = Timing { text, model: started.elapsed() - text };
    received.answered(rows.len());
    Ok((Answer { serving, rows, timing }, asked))
}

/// The lane the header names; interactive when it is absent.
///
/// # Errors
/// [`ApiError::Semantic`] for a lane that is none.
pub fn lane(headers: &HeaderMap) -> Result<Lane, ApiError> {
    let Some(value) = headers.get(LANE) else { return Ok(Lane::default()) };
    value.to_str().ok().and_then(Lane::from_code).ok_or_else(|| ApiError::Semantic {
        code: "unknown_lane",
        detail: format!("`{LANE}` is `interactive` or `bulk`"),
        pointer: String::new(),
        bound: None,
    })
}

/// Places for a request's items; they are free again when this is dropped.
#[derive(Debug)]
pub struct Places {
    _all: OwnedSemaphorePermit,
    _bulk: Option<OwnedSemaphorePermit>,
}

impl Places {
    /// `n_items` places in `lane`.
    ///
    /// # Errors
    /// [`ApiError::Overloaded`] when there are not as many.
    pub fn take(service: &Service, n_items: usize, lane: Lane) -> Result<Self, ApiError> {
        let take = |from: &Arc<Semaphore>| {
            Arc::clone(from)
                .try_acquire_many_owned(n_items as u32)
                .map_err(|_| ApiError::Overloaded)
        };
        let bulk = match lane {
            Lane::Interactive => None,
            Lane::Bulk => Some(take(&service.bulk_items)?),
        };
        Ok(Self { _all: take(&service.items)?, _bulk: bulk })
    }
}

/// One result per row, in order: from the cache where it knows the text, else from the engine, until `due`.
///
/// # Errors
/// [`ApiError`] when rows had to be computed and were not taken.
pub async fn predict(
    service: &Service,
    serving: &Serving,
    lane: Lane,
    rows: Vec<Prepared>,
    due: Due,
) -> Result<Vec<Result<Prediction, InferError>>, ApiError> {
    let Some(cache) = &serving.cache else {
        let predictions = serving.engine.predict_many(lane, rows, Some(due.at())).await;
        return predictions.map_err(|it| due.error(it));
    };
    let mut answers = Vec::with_capacity(rows.len());
    let (mut unknown, mut places) = (Vec::new(), Vec::new());
    for (idx, row) in rows.into_iter().enumerate() {
        let known = row.fingerprint.and_then(|it| cache.get(&it));
        if known.is_none() {
            places.push((idx, row.fingerprint));
            unknown.push(row);
        }
        answers.push(known.ok_or(InferError::Model));
    }
    service.metrics.cache(answers.len() - unknown.len(), unknown.len());
    if !unknown.is_empty() {
        let predictions = serving.engine.predict_many(lane, unknown, Some(due.at())).await;
        let predictions = predictions.map_err(|it| due.error(it))?;
        for ((idx, fingerprint), prediction) in places.into_iter().zip(predictions) {
            if let (Some(fingerprint), Ok(prediction)) = (fingerprint, &prediction) {
                cache.insert(&fingerprint, prediction.clone());
            }
            answers[idx] = prediction;
        }
    }
    Ok(answers)
}

/// Runs `work` on the threads for text work: the CPU's work must not hold up those that answer everyone else.
///
/// # Errors
/// [`ApiError::Internal`] when it panics; the panic's place was logged where it happened.
pub async fn on_cpu<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::Internal)
}
