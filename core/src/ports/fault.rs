//! What stands behind an error of a port: the adapter's own error, kept for the log.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A text, and the error that it comes from, where one was reported. Two are equal where their texts are.
#[derive(Clone)]
pub struct Fault {
    text: String,
    cause: Option<Arc<dyn Error + Send + Sync>>,
}

impl Fault {
    /// An adapter's error, in its own words.
    pub fn of(error: impl Error + Send + Sync + 'static) -> Self {
        Self { text: error.to_string(), cause: Some(Arc::new(error)) }
    }

    /// An adapter's error, in other words.
    pub fn stated(text: impl Into<String>, error: impl Error + Send + Sync + 'static) -> Self {
        Self { text: text.into(), cause: Some(Arc::new(error)) }
    }

    /// Nothing answered within `limit`: in whole seconds, else in milliseconds.
    pub fn no_answer(limit: Duration) -> Self {
        match limit.subsec_millis() {
            0 => format!("no answer in {} s", limit.as_secs()).into(),
            _ => format!("no answer in {} ms", limit.as_millis()).into(),
        }
    }

    /// What the adapter's error comes from in turn; the error itself, where it was told in other words.
    pub(crate) fn source(&self) -> Option<&(dyn Error + 'static)> {
        let cause = self.cause.as_deref()?;
        if cause.to_string() == self.text { cause.source() } else { Some(cause) }
    }
}

impl<T: Into<String>> From<T> for Fault {
    fn from(text: T) -> Self {
        Self { text: text.into(), cause: None }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl PartialEq for Fault {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Fault {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::queue::QueueError;
    use crate::ports::store::StoreError;

    #[derive(Debug, thiserror::Error)]
    #[error("the driver failed")]
    struct Driver(#[source] std::io::Error);

    fn driver() -> Driver {
        Driver(std::io::Error::other("the cable is out"))
    }

    fn causes(error: &dyn Error) -> Vec<String> {
        let (mut causes, mut next) = (Vec::new(), error.source());
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        causes
    }

    #[test]
    fn a_limit_is_said_in_the_unit_it_is_set_in() {
        assert_eq!(Fault::no_answer(Duration::from_secs(3)).to_string(), "no answer in 3 s");
        assert_eq!(Fault::no_answer(Duration::from_millis(1500)).to_string(), "no answer in 1500 ms");
    }

    #[test]
    fn a_port_s_error_keeps_where_it_comes_from() {
        let store = StoreError::Unavailable(Fault::of(driver()));
        assert_eq!(store.to_string(), "the store cannot be reached: the driver failed");
        assert_eq!(causes(&store), ["the cable is out"]);
        let queue = QueueError::Unavailable(Fault::stated("Redis at example:6379", driver()));
        assert_eq!(causes(&queue), ["the driver failed", "the cable is out"]);
        assert!(causes(&StoreError::Unavailable("no answer".into())).is_empty());
        assert_eq!(store, StoreError::Unavailable("the driver failed".into()));
    }
}
