//! Segments and automations at work.
//!
//! 1. Processing a batch of events stages a [`jobs::Job::Signal`] for each customer whom a segment or an automation is to hear of, in
//!    the events' own transaction; most events concern none and stage nothing.
//! 2. [`signals`] processes these: who belongs to what now, which runs begin, and which are woken.
//! 3. [`runs`] goes on with a run: it records what it is about to do, does it, and records what became of it.
//! 4. [`scheduler`] finds what is due in the store: runs that wait, customers whom time alone moves between segments, schedules. What
//!    waits costs nothing but its row.
//!
//! Jobs leave through the outbox. A job says which run, at which revision; whatever the queue delivers twice does nothing twice.
//! [`compiled`] is what a brand has set up, read once and remembered; [`api`] is what its API does, [`preflight`] what
//! would make steps fail, [`trial`] sends an automation's e-mails to whoever writes it. Expressions and templates run
//! through [`languages`].

pub mod api;
pub mod compiled;
pub mod confirm;
pub mod destinations;
pub mod handle;
pub mod jobs;
pub mod languages;
pub mod links;
pub mod preflight;
pub mod runs;
pub mod scheduler;
pub mod signals;
pub mod signing;
pub mod trial;
pub mod unsubscribe;
