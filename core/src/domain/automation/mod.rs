//! From a signal to an action: what belongs to a segment, and what an automation does about it.
//!
//! Facts about a customer ([`facts`]) are what expressions ([`expression`]) speak of. A [`segment`] is an expression with a name.
//! A definition ([`definition`]) becomes a [`plan`], whose nodes a [`run`] goes through for one customer; [`rendering`] writes the
//! texts that it sends, and [`presets`] has definitions to begin with. What expressions and templates may use up is in [`meter`].

pub mod definition;
pub mod emitted;
pub mod expression;
pub mod facts;
pub mod interests;
mod kinds;
pub mod meter;
mod metered;
pub mod plan;
pub mod presets;
pub mod quiet;
pub mod rendering;
pub mod run;
pub mod segment;
mod unlinked;
