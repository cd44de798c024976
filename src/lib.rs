//! Triage of Chinese public-opinion items: text in, a calibrated proposal out.
//!
//! The rooms, in the order a newcomer should read them; arrows point one way:
//!
//! ```text
//! main -> commands -> http -----> inference --> pipeline --> text, model --> domain
//!                 |        |----> reply ------> evidence, pipeline
//!                 |        \----> cache, replay, keys, telemetry
//!                 |-> scoring --> reply, rows, pipeline
//!                 |-> training -> text, model, evaluation --> domain
//!                 |-> cases ----> imports -> rows ---------> domain
//!                 |-> selection
//!                 |-> suites -----------------------------> domain
//!                 |-> page -----> evaluation
//!                 |-> registry -> model
//!                 \-> corpus ---> text
//! ```

pub mod domain;
pub mod text;

pub mod model;
pub mod pipeline;

pub mod evidence;
pub mod reply;

pub mod inference;

pub mod cache;
pub mod replay;

pub mod http;

pub mod rows;

pub mod imports;

pub mod scoring;

pub mod cases;
pub mod selection;
pub mod suites;

pub mod evaluation;
pub mod page;
pub mod registry;
pub mod training;

pub mod corpus;

pub mod config;
pub mod keys;
pub mod telemetry;

pub mod commands;
